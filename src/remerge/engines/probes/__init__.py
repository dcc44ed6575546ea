"""What each engine is asked to do when it is checked: something small and real."""
