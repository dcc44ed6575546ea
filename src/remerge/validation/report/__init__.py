"""The report on one output: a page of HTML that needs nothing but itself."""
