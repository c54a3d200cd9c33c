"""The command line: a sub-command a stage, plus run, export, demo, compare, serve, recommend, tune, plan, doctor."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recsys_ray.cli_arguments import ReleasePath
from recsys_ray.cli_plan import app as plan_app
from recsys_ray.cli_recommend import recommend
from recsys_ray.cli_releases import app as releases_app
from recsys_ray.core.errors import ConfigError, RecsysError

if TYPE_CHECKING:
    from recsys_ray.config import RunConfig

app = typer.Typer(
    name="recsys-ray",
    help="The retrieval stage of a recommender on Ray: from raw logs to HTTP candidates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Of click, or of the copy of click that newer typers bring along and do not export.
_UsageError: Any = typer.BadParameter.__base__

Preset = Annotated[str, typer.Option(help="A named run: see `recsys-ray presets`.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings, over the preset's.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="dotted.path=value, over preset and file; repeat it.")
]
Storage = Annotated[
    Path | None, typer.Option(help="Where artifacts, report and release go; short for --set storage=FOLDER.")
]
ReportPath = Annotated[Path, typer.Argument(help="The --storage folder of a run, a report's folder, or report.json.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")]


def main() -> None:
    """Entry point of the console script: errors that a user can mend are printed without a traceback, exit code 2."""
    try:
        code = app(standalone_mode=False)
    except RecsysError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False)
        code = 2
    except _UsageError as error:
        error.show()
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        Console(stderr=True).print("stopped; finished stages are kept, the same command goes on from there")
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _stage_command(stage: str, text: str) -> None:
    """Register the sub-command that runs the pipeline up to one stage."""

    def command(
        preset: Preset = "cpu", config: ConfigFile = None, sets: Settings = None, storage: Storage = None
    ) -> None:
        from recsys_ray.presets import load_preset

        settings = load_preset(preset, config, sets or [], storage)
        # What a run needs takes seconds to import: a mistake in the settings is told before.
        from recsys_ray.pipeline import run

        run(settings, until=stage)

    app.command(stage, help=text)(command)


for _stage, _text in {
    "prepare": "Read, validate, clean and split the raw files into a dataset.",
    "features": "Encode texts and pictures with the frozen backbones; only unseen content is encoded.",
    "embed": "Embed the catalogue with the trained item tower.",
    "index": "Choose, tune and build the ANN index by measured recall.",
    "fit": "Fit the channels.",
    "evaluate": "Rank the whole catalogue for every test user; leaves STORAGE/report.json and report.html.",
    "publish": "Fit on the events that `publish.fit_on` names and publish the release that serving loads.",
    "run": "Everything above, in order.",
}.items():
    _stage_command(_stage, _text)


@app.command()
def train(  # noqa: PLR0913 (options of one command)
    preset: Preset = "cpu",
    config: ConfigFile = None,
    sets: Settings = None,
    storage: Storage = None,
    verify_parity: Annotated[
        bool, typer.Option("--verify-parity", help="Only check that several workers train as one does.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="With --verify-parity: steps of each; 50.")] = None,
    engines: Annotated[
        str | None, typer.Option(help="With --verify-parity: which; plain,zero0,zero1,zero2,zero3.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="With --verify-parity: how many, against one; 2.")] = None,
) -> None:
    """Train the towers with Ray Train; --verify-parity checks instead that N workers do what one does."""
    from recsys_ray.presets import load_preset

    wanted = {"steps": steps, "engines": engines, "workers": workers}
    given = {name: value for name, value in wanted.items() if value is not None}
    settings = load_preset(preset, config, sets or [], storage)
    if verify_parity:
        raise typer.Exit(_verify_parity(settings, given))
    if given:
        raise ConfigError("train", [f"--{name}" for name in given], "them with --verify-parity alone")
    from recsys_ray.pipeline import run

    run(settings, until="train")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A release, the --storage folder of a run, or a towers artifact.")],
    target: Annotated[Path, typer.Option("--to", help="A folder that is new or empty.")],
) -> None:
    """Write the text and image encoders as Hugging Face directories, a folder each."""
    from recsys_ray.retrieval.export import export as export_encoders

    for one in export_encoders(source, target):
        typer.echo(f"{one.path}  ({one.modality}; loads with {one.loads_with})")


@app.command()
def presets() -> None:
    """List the named runs."""
    from recsys_ray.presets import PRESETS

    for name, make in PRESETS.items():
        typer.echo(f"{name:12} {(make.__doc__ or '').strip().splitlines()[0]}")


@app.command(name="config")
def show_config(preset: Preset = "cpu", config: ConfigFile = None, sets: Settings = None) -> None:
    """Print the whole configuration that a run would use, as YAML."""
    from recsys_ray.config import dump_config
    from recsys_ray.presets import load_preset

    typer.echo(dump_config(load_preset(preset, config, sets or [])), nl=False)


@app.command()
def compare(
    first: ReportPath,
    second: ReportPath,
    html: Annotated[Path | None, typer.Option(help="Also write the tables as a page.")] = None,
) -> None:
    """Set two reports side by side; where both asked the same queries, say whether other users would agree."""
    from recsys_ray.evaluation.compare import compare as compare_sides
    from recsys_ray.evaluation.compare import load_side, print_comparison, render_comparison
    from recsys_ray.evaluation.settings import EvaluationConfig

    comparison = compare_sides(load_side(first), load_side(second), EvaluationConfig())
    print_comparison(comparison)
    if html is not None:
        html.write_text(render_comparison(comparison), encoding="utf-8")


app.command()(recommend)


@app.command()
def serve(
    release: ReleasePath,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    topology: Annotated[
        str, typer.Option(help="collapsed (fastest) or composed (each part scales alone).")
    ] = "collapsed",
    ingress: Annotated[
        str, typer.Option(help="haproxy (fast; opens more ports) or python (only this port).")
    ] = "haproxy",
) -> None:
    """Serve over HTTP until interrupted: of a storage the active release, and the next one once it is activated."""
    from serve_app.config import ServeConfig
    from serve_app.run import run as serve_release

    if ingress not in ("haproxy", "python"):
        raise ConfigError("--ingress", ingress, "haproxy, python")
    config = ServeConfig.parse({"release": str(release), "topology": topology})
    serve_release(config, host, port, ingress="haproxy" if ingress == "haproxy" else "python")


@app.command()
def demo(
    storage: Annotated[Path, typer.Option(help="Where everything goes; a second run reuses it.")] = Path(".demo"),
    data: Annotated[
        Path | None, typer.Option(help="Your own folder: items.*, events.* or interactions.*, users.*, pictures.")
    ] = None,
    search: Annotated[str, typer.Option(help="With --data: a text to search for in the end.")] = "",
    preset: Preset = "cpu",
    sets: Settings = None,
    wheel: Annotated[Path | None, typer.Option(help="An offline copy of the recbole 1.2.1 wheel.")] = None,
    port: Port = 8000,
) -> None:
    """MovieLens-100K, or a folder of your own, from raw files to HTTP answers; keeps serving on a terminal."""
    from recsys_ray.core.config import override, parse_assignments
    from recsys_ray.demo import Questions, run_and_ask, run_demo, settings_of_folder
    from recsys_ray.presets import load_preset

    keep_serving = sys.stdout.isatty()
    if data is None:
        if search or sets:
            raise ConfigError("demo", "--search or --set without --data", "them with --data alone")
        run_demo(storage, wheel, port, keep_serving)
        return
    config = override(load_preset(preset, None, [], storage), settings_of_folder(data))
    config = override(config, parse_assignments(sets or []))
    run_and_ask(config, Questions(search=search or None), port, keep_serving)


@app.command()
def tune(
    space: Annotated[
        Path | None, typer.Option(help="YAML: dotted path -> distribution; by default tune/space.yaml.")
    ] = None,
    preset: Preset = "cpu",
    config: ConfigFile = None,
    sets: Settings = None,
    storage: Storage = None,
    trials: Annotated[
        int, typer.Option(min=1, help="How many configurations to try; more than last time goes on from there.")
    ] = 8,
    concurrent: Annotated[int, typer.Option(min=1, help="How many at a time.")] = 1,
) -> None:
    """Search settings with Ray Tune on validation recall; leaves STORAGE/best.yaml and trials.html.

    The same command again goes on with a search that was cut.
    """
    from recsys_ray.presets import load_preset
    from tune.search import search
    from tune.spaces import DEFAULT_SPACE, load_space

    run = load_preset(preset, config, sets or [], storage)
    search(run, load_space(space or DEFAULT_SPACE), trials, concurrent)


@app.command()
def pareto(  # noqa: PLR0913 (options of one command)
    space: Annotated[
        Path | None,
        typer.Option(help="YAML: settings of model and training, index.dim, index.factory -> distribution."),
    ] = None,
    preset: Preset = "cpu",
    config: ConfigFile = None,
    sets: Settings = None,
    storage: Storage = None,
    trials: Annotated[int, typer.Option(min=1, help="How many towers to train at most.")] = 8,
    max_p95_ms: Annotated[float | None, typer.Option(help="Of one query, encoded and searched.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Of the searched index and the encoder.")] = None,
    min_recall: Annotated[float | None, typer.Option(help="recall@100 of the nearest channel on validation.")] = None,
) -> None:
    """Measure recall against latency against bytes; leaves STORAGE/pareto.html and front/ID.yaml, names the cheapest.

    Without --space only the length of the vectors and the index vary, and nothing is trained but the run's own towers.
    """
    from recsys_ray.presets import load_preset
    from tune.front import Target
    from tune.pareto import pareto as find_front
    from tune.spaces import load_space

    target = Target(max_p95_ms, max_bytes, min_recall)
    run = load_preset(preset, config, sets or [], storage)
    typer.echo(find_front(run, load_space(space) if space else {}, trials, target).id)


app.add_typer(plan_app, name="plan")
app.add_typer(releases_app, name="releases")


@app.command()
def doctor() -> None:
    """Say what is missing on this machine, and what to do about it."""
    from recsys_ray.core.doctor import check_all, print_checks

    raise typer.Exit(print_checks(check_all()))


def _verify_parity(config: "RunConfig", given: dict[str, Any]) -> int:
    """Print both curves; the exit code, 1 where they differ."""
    from recsys_ray.pipeline import verify_parity
    from recsys_ray.stages.parity import ParityPlan, parse_engines

    if "engines" in given:
        given = {**given, "engines": parse_engines(given["engines"])}
    parity = verify_parity(config, ParityPlan(**given))
    for line in parity.lines():
        typer.echo(line)
    failures = parity.failures()
    for failure in failures:
        typer.echo(f"NOT EQUAL: {failure}", err=True)
    if not failures:
        typer.echo("equal: several workers train as one does")
    return int(bool(failures))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
