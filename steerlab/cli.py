"""The command line: one thin function a command.

Heavy imports stay inside the functions, so that `steerlab --help` answers at once. Wrong input ends with
exit code 2 and one sentence, an interrupt with 130.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from steerlab import __version__
from steerlab.errors import DirectionError, ModelError, SteerlabError

if TYPE_CHECKING:
    from steerlab.comparison import Run
    from steerlab.models import Edit, LanguageModel, SelfCheck
    from steerlab.statistics import Estimate

app = typer.Typer(
    name="steerlab",
    help="See what post-training changed inside a language model, and steer one at inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo_app = typer.Typer(help="The bundled pairs of small trained models.", no_args_is_help=True)
app.add_typer(zoo_app, name="zoo")

_INTERRUPTED = 130

out = Console()
err = Console(stderr=True)

Size = Literal["quick", "full"]
Contrast = Literal["truth", "refusal"]
Estimator = Literal["difference-in-means", "mass-mean", "logistic", "lda", "pca", "ccs", "ttpd"]
Scale = Literal["all", "small", "large"]
Template = Literal["auto", "chat", "plain", "none"]
Form = Literal["transformers", "gguf", "vllm-lens", "easysteer"]

ModelName = Annotated[str, typer.Argument(help="Hub name, local folder, or zoo:NAME for a bundled model.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code from the hub. Off unless you say so.")
]


Steer = Annotated[
    list[str] | None,
    typer.Option(
        help="FILE[:STRENGTH[@LAYERS]] adds a direction; strength in units of its class gap. Repeatable."
    ),
]
AblateOption = Annotated[
    list[str] | None,
    typer.Option(help="FILE[@LAYER] removes the direction found at a layer everywhere. Repeatable."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """See what post-training changed inside a language model, and steer one at inference."""


@app.command()
def compare(
    base: ModelName,
    post: ModelName,
    output: Annotated[Path, typer.Option("--out", help="The run folder.")],
    prompts: Annotated[
        Path | None, typer.Option(help="File or folder of requests in place of the packaged ones.")
    ] = None,
    statements: Annotated[
        Path | None, typer.Option(help="File or folder of true and false statements, likewise.")
    ] = None,
    studies: Annotated[
        str, typer.Option(help="Comma-separated.")
    ] = "truthfulness,refusal,confidence,branching",
    size: Annotated[
        Size, typer.Option(help="quick: minutes on a CPU; full: for a GPU or patience.")
    ] = "quick",
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare a base model with the model post-trained from it; write a report."""
    from steerlab.comparison import compare as run_comparison

    names = [name.strip() for name in studies.split(",") if name.strip()]
    with err.status("Loading the libraries"):
        import steerlab.models  # noqa: F401  (seconds, once)
    try:
        run = run_comparison(
            base,
            post,
            out=output,
            studies=names,
            size=size,
            statements=statements,
            requests=prompts,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            announce=lambda line: err.print(line, style="bold", markup=False, highlight=False),
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    except KeyboardInterrupt:
        err.print("Finished studies are kept; the same command with --resume goes on.")
        raise
    _print_run(run)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report of a stored run again, and show its table."""
    from steerlab.comparison import rewrite_report

    _print_run(rewrite_report(run))


@app.command()
def extract(
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="Where the direction goes (.safetensors).")],
    contrast: Annotated[Contrast, typer.Option(help="Which packaged contrast.")] = "truth",
    prompts: Annotated[
        Path | None, typer.Option(help="File or folder in place of the packaged contrast.")
    ] = None,
    estimator: Annotated[
        Estimator, typer.Option(help="pca and ccs read pairs of a statement and its negation.")
    ] = "difference-in-means",
    layers: Annotated[str, typer.Option(help="`all`, `4`, `4-8` or `2,5,7`.")] = "all",
    template: Annotated[Template, typer.Option(help="For requests: auto, chat, plain or none.")] = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Find a direction in one model and store it as safetensors."""
    with err.status("Loading the libraries"):
        from steerlab.extraction import extract_direction, labelled_prompts, require_place

    require_place(output)
    loaded = _load(model, device, dtype, trust_remote_code)
    data = labelled_prompts(loaded, contrast, prompts, template)
    found = extract_direction(
        loaded,
        data.prompts,
        data.labels,
        estimator=estimator,
        layers=layers,
        data_hash=data.hash,
        pairs=data.pairs,
        polarity=data.polarity,
    )
    found.direction.save(output)
    out.print(_extraction_table(found.accuracy))
    out.print(f"Direction of {len(found.direction.sites)} sites: {output}", markup=False, soft_wrap=True)


@app.command()
def generate(
    model: ModelName,
    prompt: Annotated[str, typer.Argument(help="The user's text.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    template: Annotated[Template, typer.Option(help="auto, chat, plain or none.")] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Generate from a model, steered or not; with edits the unsteered text is shown beside."""
    loaded = _load(model, device, dtype, trust_remote_code)
    rendered = loaded.instruction_prompt(prompt, template=template)
    edits = _edits(loaded, steer or [], ablate or [])

    def _complete() -> str:
        sampling = {"do_sample": True, "temperature": temperature, "seed": seed} if temperature > 0 else {}
        return loaded.generate([rendered], max_new_tokens=max_new_tokens, **sampling)[0].text  # type: ignore[arg-type]

    plain = _complete()
    if not edits:
        out.print(plain, markup=False, highlight=False)
        return
    with loaded.steering(*edits):
        steered = _complete()
    for title, text in (("unsteered", plain), ("steered", steered)):
        out.rule(title)
        out.print(text, markup=False, highlight=False)


@app.command()
def chat(
    model: ModelName,
    steer: Steer = None,
    ablate: AblateOption = None,
    template: Annotated[Template, typer.Option(help="auto, chat or plain.")] = "auto",
    beside: Annotated[bool, typer.Option(help="Show the unsteered answer beside the steered one.")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a model, steered and unsteered side by side; strengths change while you talk (/help)."""
    loaded = _load(model, device, dtype, trust_remote_code)
    from steerlab.chat import Chat

    talk = Chat(
        loaded,
        _edits(loaded, steer or [], ablate or []),
        out,
        template=template,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        beside=beside,
    )
    out.print(talk.state(), style="dim", markup=False, highlight=False)
    talk.run(_typed_lines())


@app.command()
def bake(
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Put interventions into the weights; write a transformers folder that any engine loads."""
    export("transformers", model, output, steer, ablate, device, dtype, trust_remote_code)


@app.command()
def export(
    form: Annotated[Form, typer.Argument(help="transformers, gguf, vllm-lens or easysteer.")],
    model: ModelName,
    output: Annotated[Path, typer.Option("--out", help="The folder (transformers, easysteer) or file.")],
    steer: Steer = None,
    ablate: AblateOption = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write steering in the form another engine reads; `transformers` is what `bake` writes."""
    loaded = _load(model, device, dtype, trust_remote_code)
    from steerlab import steering

    writers: dict[Form, Callable[..., Path]] = {
        "transformers": partial(steering.export_transformers, in_place=True),  # nobody else needs the model
        "gguf": steering.export_gguf,
        "vllm-lens": steering.export_vllm_lens,
        "easysteer": steering.export_easysteer,
    }
    written = writers[form](loaded, _edits(loaded, steer or [], ablate or []), output)
    out.print(f"Written: {written}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A checkpoint to check, too.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """What is installed, what device there is, and whether a checkpoint passes the self-check."""
    from steerlab.environment import hardware, library_versions

    table = Table("what", "found", title="Environment", title_justify="left")
    for name, value in {**library_versions(), **hardware()}.items():
        table.add_row(name, str(value))
    out.print(table)
    if model is None:
        return
    from steerlab.models import SelfCheck

    try:
        out.print(_self_check_table(_load(model, device, dtype, trust_remote_code).self_check()))
    except ModelError as error:
        if isinstance(error.self_check, SelfCheck):
            out.print(_self_check_table(error.self_check))
        raise


@zoo_app.command("list")
def zoo_list() -> None:
    """The bundled models, what they are and where they lie."""
    from steerlab import zoo

    table = Table("name", "folder", "size")
    for name in zoo.names():
        folder = zoo.path(name)
        size = sum(file.stat().st_size for file in folder.iterdir())
        table.add_row(f"zoo:{name}", str(folder), f"{size / 1e6:.1f} MB")
    out.print(table)


@zoo_app.command("train")
def zoo_train(
    output: Annotated[Path, typer.Option("--out", help="Where the trained folders go.")],
    scale: Annotated[Scale, typer.Option(help="Which pair.")] = "all",
    seed: Annotated[int, typer.Option(help="Seed of weights and corpus.")] = 0,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Use torch.compile; faster, needs a C++ compiler.")
    ] = False,
) -> None:
    """Train the bundled pairs again, from nothing, on the CPU (hours on two cores)."""
    from steerlab import zoo
    from steerlab.progress import track

    wanted = zoo.scales() if scale == "all" else (scale,)
    for folder in zoo.train(output, scale=wanted, seed=seed, progress=track, compiled=compiled):
        out.print(str(folder), soft_wrap=True)


@zoo_app.command("measure")
def zoo_measure(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder `zoo train` wrote; the bundled pairs else.")
    ] = None,
    scale: Annotated[Scale, typer.Option(help="Which pair.")] = "all",
) -> None:
    """Measure what the pairs can do, on held-out items, beside what they must be able to do."""
    from steerlab import zoo

    table = Table("model", "what", "measured", "must be", "")
    for row in zoo.measure(folder, scale=zoo.scales() if scale == "all" else (scale,)):
        table.add_row(
            row.model, row.what, str(row.estimate), str(row.bar or ""), "missed" if row.met is False else ""
        )
    out.print(table)


def main() -> None:
    """Run the command line and turn errors into sentences and exit codes."""
    try:
        code = app(standalone_mode=False)
    except SteerlabError as error:
        err.print(f"steerlab: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        # click's usage errors know how to show themselves; anything else is a fault of ours and keeps its trace.
        show, status = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or status is None:
            raise
        show()
        sys.exit(status)
    if code == _INTERRUPTED:
        err.print("Interrupted.")
    sys.exit(code if isinstance(code, int) else 0)


def _load(model: str, device: str, dtype: str, trust_remote_code: bool) -> LanguageModel:
    from steerlab.comparison import load_named

    with err.status("Loading the libraries"):
        import steerlab.models  # noqa: F401  (seconds, once)
    return load_named(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)


def _edits(model: LanguageModel, steer: list[str], ablate: list[str]) -> list[Edit]:
    from steerlab.extraction import parse_steer, read_direction
    from steerlab.steering import Ablate, Add

    edits: list[Edit] = []
    for text in steer:
        file, strength, layers = parse_steer(text)
        direction = read_direction(file, layers, model)
        edits.append(Add(direction, strength=1.0 if strength is None else strength, unit="class_gap"))
    for text in ablate:
        file, strength, layers = parse_steer(text)
        if strength is not None:
            raise DirectionError(f"{text!r} gives a strength, which ablation has not; write FILE[@LAYER].")
        edits.append(Ablate(read_direction(file, layers, model)))
    return edits


def _typed_lines() -> Iterator[str]:
    """Lines as they are typed or piped in, until they end; an interrupt at the prompt ends them, too."""
    shown = "> " if sys.stdin.isatty() else ""
    try:
        while True:
            yield input(shown)
    except (EOFError, KeyboardInterrupt):
        return


def _self_check_table(check: SelfCheck) -> Table:
    table = Table("part", "largest relative error", "verdict", title="Self-check", title_justify="left")
    for row in check.rows:
        table.add_row(row.part, f"{row.error:.1e}", "ok" if row.ok else "FAILS")
    return table


def _extraction_table(accuracy: dict[str, Estimate]) -> Table:
    table = Table(
        "site", "held-out accuracy", title="Five-fold accuracy, 95 % interval", title_justify="left"
    )
    for site, estimate in accuracy.items():
        table.add_row(site, str(estimate))
    return table


def _print_run(run: Run) -> None:
    from steerlab.report import terminal_table

    out.print(terminal_table(list(run.results.values())))
    out.print(f"Report: {run.report}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
