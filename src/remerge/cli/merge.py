"""``remerge merge``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from remerge.cli.forms import (
    TO,
    form_options,
    is_engine_made,
    refuse_checkpoints_own,
    refuse_prove,
    write_by_engine,
)
from remerge.cli.gate_options import gate_options, is_given, take_gate
from remerge.cli.methods import MethodCommand, given_parameters, method_options, numbers
from remerge.cli.options import (
    device,
    json_output,
    max_memory,
    pythons,
    quiet,
    threads,
    verbose,
)
from remerge.cli.output import print_json, print_notes, progress

if TYPE_CHECKING:
    from remerge.merging.recipes.grammar import RecipeFile
    from remerge.validation.compare import CompareReport


@click.command(
    "merge",
    cls=MethodCommand,
    short_help="Merge one adapter or several into BASE, or into one new adapter.",
)
@click.argument("inputs", metavar="[BASE] ADAPTER...", nargs=-1)
@click.option("-o", "--output", "--out", metavar="OUT", help="Directory to write.")
@click.option(
    "--recipe",
    metavar="FILE",
    help="Read inputs and options from a YAML file: remerge's own, mergekit's, LLaMA-Factory's or "
    "axolotl's (docs/several.md). What the command line says counts more.",
)
@click.option(
    "--method",
    default="sum",
    show_default=True,
    metavar="NAME",
    help="How to combine adapters: sum, linear, sequential, ties, cat, svd or another one of "
    "docs/several.md.",
)
@click.option(
    "--weights", type=numbers, metavar="NUMBER[,NUMBER...]", help="Of the adapters; 1 each."
)
@method_options
@click.option(
    "--prefer",
    metavar="[PATTERN=]ADAPTER",
    multiple=True,
    help="Where several adapters replace the same tensor, take this one's (name or number).",
)
@click.option(
    "--to",
    default="safetensors",
    show_default=True,
    metavar="FORM",
    help=f"{TO} adapter: the combination as one new adapter for PEFT.",
)
@form_options
@click.option(
    "--dtype",
    default="keep",
    show_default=True,
    help="keep, bfloat16, float16 or float32; of a new adapter's factors, keep is float32.",
)
@click.option(
    "--keep-float32",
    metavar="PATTERN",
    multiple=True,
    help="Write tensors whose names match in float32, e.g. 'model.layers.*.mlp.*'; repeatable.",
)
@click.option(
    "--base-precision",
    metavar="PRECISION",
    help="What a quantised BASE is taken for. dequantized (the default): its own values, which are "
    "what the adapter saw in training, so right for QLoRA. original=ORG/NAME: the 16-bit model it "
    "was made from, right for an adapter that was trained on that one, or where the weights of "
    "other deployments must stay comparable; the adapter then loses the rounding it was fitted to.",
)
@click.option(
    "--simulate",
    type=click.Choice(["nf4", "none"]),
    help="Round a 16-bit BASE through NF4 first, as QLoRA training did on loading it: right where "
    "the adapter was trained with load_in_4bit and only the 16-bit base is at hand. none takes a "
    "recipe's nf4 back.",
)
@click.option(
    "--requantize",
    type=click.Choice(["same"]),
    help="Write a quantised BASE's own format back: block FP8, MXFP4, NVFP4, NF4 or int8. Scales "
    "are derived anew for touched tensors; all others keep their bytes. Small deltas may vanish: "
    "the summary says how much was kept.",
)
@click.option(
    "--expert-packing",
    type=click.Choice(["auto", "rank-major", "expert-major"]),
    default="auto",
    show_default=True,
    help="How lora_B of stacked experts is laid out; auto goes by the adapter's peft_version.",
)
@click.option(
    "--retention",
    type=click.Choice(["sample", "full"]),
    default="sample",
    show_default=True,
    help="Measure what the output keeps of the delta on a sample of each tensor, or on all of it.",
)
@click.option("--max-shard-size", metavar="SIZE", help="Cut new shards, e.g. 5GB.")
@click.option(
    "--tokenizer",
    default="auto",
    show_default=True,
    metavar="auto|base|ADAPTER",
    help="Whose tokenizer files to carry; auto takes the adapter's where it brings one.",
)
@click.option(
    "--run-id",
    metavar="[ADAPTER=]ID",
    multiple=True,
    help="The training run that made ADAPTER, for the manifest, where no files of wandb, MLflow or "
    "the trainer beside it tell; wandb:ID and mlflow:ID say whose it is.",
)
@click.option(
    "--gate",
    is_flag=True,
    help="Compare with the adapters on BASE first, and write OUT only if it passes; the next "
    "options say on what (docs/compare.md).",
)
@gate_options
@click.option("--copy-code", is_flag=True, help="Also carry the base's .py files.")
@click.option("--overwrite", is_flag=True, help="Replace an existing OUT, atomically.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@device
@threads
@max_memory
@json_output
@quiet
@verbose
def command(
    inputs: tuple[str, ...],
    output: str | None,
    recipe: str | None,
    engine_python: tuple[str, ...],
    prove: bool,
    retention: Literal["sample", "full"],
    overwrite: bool,
    dry_run: bool,
    gate: bool,
    device: str,
    threads: int | None,
    max_memory: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Merge ADAPTER, or several of them, into BASE and write the checkpoint to OUT.

    BASE and ADAPTER are directories or Hub ids (org/name[@revision]); ADAPTER:name picks one of
    several. Without BASE, the recipe or the adapter's configuration names it.

    \b
    remerge merge meta-llama/Llama-3.1-8B ./adapter -o merged
    remerge merge ./base ./a ./b -o merged --weights 0.7,0.3 --method ties --density 0.5
    remerge merge --recipe recipe.yaml
    remerge merge ./base ./adapter -o merged --dry-run --json
    """
    if not inputs and recipe is None:
        raise click.UsageError(
            "Missing ADAPTER: say what to merge ([BASE] ADAPTER...), or give --recipe FILE."
        )
    if recipe is None:
        _check_output(output, dry_run)
    asks = take_gate(options, None)
    asked = _asked(inputs, output, recipe, options)
    judging = None
    if gate or asks or asked.gate is not None:
        judging = {**(asked.gate or {}), **asks}
    _check_output(asked.output, dry_run)
    resources: dict[str, Any] = {"max_memory": max_memory, "progress": not (quiet or as_json)}
    import remerge
    from remerge.cli.merge_report import merged_document, plan_document, print_merged, print_plan
    from remerge.sources.references import labels_of

    labels = labels_of(asked.adapters)
    told = _judged(as_json=as_json, quiet=quiet)
    if asked.options.get("to") == "adapter":
        if judging is not None:
            raise click.UsageError("--gate judges a model, and this writes an adapter.")
        if is_given("retention"):
            raise click.UsageError("--retention measures a checkpoint; leave it out.")
        _to_adapter(
            asked,
            labels,
            {"overwrite": overwrite, "device": device, "threads": threads, **resources},
            dry_run=dry_run,
            as_json=as_json,
            quiet=quiet,
            verbose=verbose,
        )
        return
    own = pythons(engine_python)
    refuse_prove(asked.options, prove=prove)
    if is_engine_made(asked.options):
        given = {name for name in click.get_current_context().params if is_given(name)}
        refuse_checkpoints_own(asked.options["to"], given)
        if not dry_run:
            assert asked.output is not None
            running: dict[str, Any] = {"overwrite": overwrite, "prove": prove, "threads": threads}
            running |= {"gate": judging, "judged": told}
            options = {**asked.options, **running}
            write_by_engine(
                asked.base,
                asked.adapters,
                asked.output,
                labels,
                asked.notes,
                {**options, "engine_python": own, "progress": resources["progress"]},
                as_json=as_json,
                quiet=quiet,
            )
            return
    if dry_run:
        plan = remerge.plan(asked.base, asked.adapters, **asked.options, **resources)
        if as_json:
            print_json(plan_document(plan, labels, asked.notes, max_memory))
        elif not quiet:
            print_notes((*asked.notes, *plan.notes))
            print_plan(plan, labels, max_memory, verbose=verbose)
        return
    assert asked.output is not None
    with progress("merging", quiet=quiet or as_json) as report:
        result = remerge.merge(
            asked.base,
            asked.adapters,
            asked.output,
            retention=retention,
            overwrite=overwrite,
            device=device,
            threads=threads,
            report=report,
            gate=judging,
            judged=told,
            **asked.options,
            **resources,
        )
    if as_json:
        print_json(merged_document(result, labels, asked.notes))
    elif not quiet:
        print_notes(asked.notes)
        print_merged(result, labels, verbose=verbose)


def _judged(*, as_json: bool, quiet: bool) -> Callable[[CompareReport], None]:
    """Shows the gates of an output that is about to be published, or not."""

    def told(report: CompareReport) -> None:
        if not (as_json or quiet):
            from remerge.cli.compare_report import print_gates

            print_notes(report.figures.notes)
            print_gates(report.figures)

    return told


def _to_adapter(
    asked: RecipeFile,
    labels: Sequence[str],
    resources: dict[str, Any],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    import remerge
    from remerge.cli.adapter_report import (
        adapter_document,
        adapter_plan_document,
        print_adapter,
        print_adapter_plan,
    )

    if dry_run:
        planning = {name: resources[name] for name in ("max_memory", "progress")}
        plan = remerge.plan(asked.base, asked.adapters, **asked.options, **planning)
        if as_json:
            print_json(adapter_plan_document(plan, labels, asked.notes))
        elif not quiet:
            print_notes((*asked.notes, *plan.notes))
            print_adapter_plan(plan, labels, verbose=verbose)
        return
    assert asked.output is not None
    with progress("combining", quiet=quiet or as_json) as report:
        result = remerge.combine(
            asked.base, asked.adapters, asked.output, report=report, **asked.options, **resources
        )
    if as_json:
        print_json(adapter_document(result, labels, asked.notes))
    elif not quiet:
        print_notes((*asked.notes, *result.manifest.notes))
        print_adapter(result, labels, verbose=verbose)


def _check_output(output: str | None, dry_run: bool) -> None:
    if output is None and not dry_run:
        raise click.UsageError("Say where to write: -o OUT (or --dry-run to see the plan).")


def _asked(
    inputs: Sequence[str], output: str | None, recipe: str | None, options: dict[str, Any]
) -> RecipeFile:
    """What the command line asks for, and the recipe where the command line is silent."""
    import remerge
    from remerge.merging.recipes.grammar import RecipeFile

    parameters = given_parameters(options)
    given = {name: value for name, value in options.items() if is_given(name)}
    if given.get("simulate") == "none":
        given["simulate"] = None
    base, adapters = (inputs[0], inputs[1:]) if len(inputs) > 1 else (None, inputs)
    written = RecipeFile() if recipe is None else remerge.read_recipe(recipe)
    return written.overridden(base, adapters, output, **given, parameters=parameters)
