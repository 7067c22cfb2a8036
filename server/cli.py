"""The installed command `tandem`.

Imports at the top are the quick ones; each command brings its own. A bad setting ends in one line
on standard error and exit code 2.
"""

import contextlib
import gc
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.contract.model_spec import ModelSpec
from engine.contract.orders import PlanningOrder, QuantizingOrder, TrainingOrder
from engine.errors import EngineError
from engine.processes.own_packages import HOME, foreign_distributions, module_command
from engine.version import __version__
from server.process.options import given_settings, serve_signature
from server.settings import ClientSettings, load_client_settings, load_settings
from server.settings.problem import SettingsProblem
from server.terminal import evaluate
from server.terminal.order_options import AS_IN_SERVE, Given, given, ordered

app = typer.Typer(
    name="tandem",
    help="Serve language and image models through the OpenAI API.",
    no_args_is_help=True,
    rich_markup_mode=None,  # its tables cut long option names off
    pretty_exceptions_enable=False,  # they would show local values: keys and prompts
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(evaluate.app, name="eval", short_help="Evaluate models on your own questions.")

Url = Annotated[str | None, typer.Option(help="URL of the server. [TANDEM_URL]")]
ApiKey = Annotated[str | None, typer.Option(help="Key to send. [TANDEM_API_KEY]", metavar="KEY")]
ImageFile = Annotated[Path, typer.Argument(help="Image file: PNG, JPEG or WebP.")]
PictureModel = Annotated[
    str | None, typer.Option(help="Model id. Default: the only suitable model.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_OUTPUT = typer.Option("--output", "-o", help="File to write: .png, .jpg or .webp.")


def main() -> None:
    """Entry point of the package."""
    app()


def _serve(**values: Any) -> None:
    """Serve models over HTTP.

    These are the most common options; --help-all shows all of them. Each can also be set by an
    environment variable, such as TANDEM_PORT, or in the YAML file given by --config. The command
    line takes precedence, then the environment, then the file.
    """
    with _told_in_a_line():
        settings = load_settings(given_settings(values))
    _check_packages()
    gc.disable()  # until `run` has made what stays: nearly nothing of it is garbage
    try:
        from server.process.serve import run

        raise typer.Exit(run(settings))
    finally:
        gc.enable()


_serve.__signature__ = serve_signature()  # type: ignore[attr-defined]
app.command("serve")(_serve)


@app.command(short_help="Run several servers behind one address with Ray Serve.")
def ray(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="As in serve.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="As in serve: the settings of each server. The file must exist on all machines."
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Number of servers.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Start up to this many servers when requests wait.")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.0, help="CPU cores for each server.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs for each server.")] = 0.0,
    host: Annotated[str, typer.Option(help="Address of Ray's proxies.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of Ray's proxies.")] = 8000,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster. Default: a new one on this machine only."),
    ] = None,
) -> None:
    """Run several servers behind one address with Ray Serve. Needs the extra `ray`."""
    if find_spec("ray") is None:
        raise _fail("this command needs additional packages: pip install 'tandem-server[ray]'")
    from server.ray_serve.command import ray_command

    settings = given(
        models=models or None, config=None if config is None else str(config.resolve())
    )
    fleet = {
        "settings": settings,
        "min_replicas": replicas,
        "max_replicas": max_replicas or replicas,
        "num_cpus": cpus,
        "num_gpus": gpus,
    }
    with _told_in_a_line():
        load_settings(settings)
    raise typer.Exit(ray_command(fleet, host=host, port=port, address=address))


@app.command()
def chat(
    question: Annotated[
        str | None, typer.Argument(help="A single question. Without it, start a conversation.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Model id. Default: the first.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Sampling temperature; 0 is greedy.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of an answer, in tokens.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes answers repeatable.")] = None,
    history: Annotated[
        bool | None,
        typer.Option(
            "--history/--no-history",
            help="Remember chat input for the arrow keys, in the cache folder. "
            "[TANDEM_CHAT_HISTORY; yes]",
        ),
    ] = None,
) -> None:
    """Chat with a running server. Ctrl-C stops an answer; /help in a conversation lists the
    commands."""
    from server.terminal.chat.command import chat_command

    sampling = given(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    client = _client_settings(url, api_key, chat_history=history)
    raise typer.Exit(chat_command(client, question, model=model, system=system, sampling=sampling))


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="Description of the image.")],
    output: Annotated[Path, _OUTPUT] = Path("image.png"),
    size: Annotated[
        str | None,
        typer.Option(help="Width and height, such as 128x128. Default: the model's own."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same image.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of denoising steps. Default: the model's own.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the image should not show.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA adapter, as NAME or NAME:SCALE. Repeatable.", metavar="NAME"),
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(help="What to do with the finished image: enlarge or matte. Repeatable."),
    ] = None,
    model: PictureModel = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Draw an image with a running server."""
    from server.terminal.pictures import lora_of

    fields = given(
        prompt=prompt,
        size=size,
        seed=seed,
        num_inference_steps=steps,
        negative_prompt=negative_prompt,
        loras=[lora_of(one) for one in lora] if lora else None,
        then=[{"operation": operation} for operation in then] if then else None,
        model=model,
    )
    _fetch_picture("/v1/images/generations", fields, None, output, "drawing", url, api_key)


@app.command()
def upscale(
    image: ImageFile,
    output: Annotated[Path | None, _OUTPUT] = None,
    scale: Annotated[
        float | None, typer.Option(help="Upscaling factor. Default: the model's, 4.")
    ] = None,
    model: PictureModel = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Upscale an image with a running server. On first use, the server downloads a model for
    it."""
    fields = given(scale=scale, model=model)
    output = output or image.with_name(f"{image.stem}-large.png")
    _fetch_picture("/v1/images/upscale", fields, image, output, "enlarging", url, api_key)


@app.command()
def cutout(
    image: ImageFile,
    output: Annotated[Path | None, _OUTPUT] = None,
    background: Annotated[
        str | None, typer.Option(help="Colour to put behind the subject, such as #00ff00.")
    ] = None,
    model: PictureModel = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove the background of an image with a running server. On first use, the server downloads
    a model for it."""
    fields = given(background_color=background, model=model)
    output = output or image.with_name(f"{image.stem}-cutout.png")
    _fetch_picture("/v1/images/matte", fields, image, output, "cutting out", url, api_key)


def _fetch_picture(
    path: str,
    fields: dict[str, Any],
    image: Path | None,
    output: Path,
    doing: str,
    url: str | None,
    api_key: str | None,
) -> None:
    from server.terminal.pictures import PictureOrder, picture_command

    order = PictureOrder(path=path, fields=fields, image=image, output=output, doing=doing)
    raise typer.Exit(picture_command(_client_settings(url, api_key), order))


@app.command(short_help="List the served models and the built-in names.")
def models(url: Url = None, api_key: ApiKey = None) -> None:
    """List the models of a running server and the built-in names."""
    from server.terminal.models import models_command

    raise typer.Exit(models_command(_client_settings(url, api_key)))


@app.command(short_help="Monitor a running server.")
def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one snapshot, taken over a second, and exit.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show a running server's models, their memory, load and speed, and the requests in progress,
    updated every second. q or Ctrl-C quits. In a pipe, print one snapshot."""
    from server.terminal.top.command import top_command

    raise typer.Exit(top_command(_client_settings(url, api_key), once=once))


@app.command(short_help="Download a model for later use.")
def pull(
    model: Annotated[
        str, typer.Argument(help="Built-in name or hub id, as in serve.", metavar="NAME")
    ],
    cache_dir: Annotated[Path | None, AS_IN_SERVE] = None,
    as_json: Json = False,
) -> None:
    """Download the files of a model that `tandem serve` would download, and print their location
    and size. No server is needed. Complete files are not downloaded again."""
    from server.terminal.pull import pull_command

    with _told_in_a_line():
        settings, spec = load_settings(given(cache_dir=cache_dir)), ModelSpec.parse(model)
    raise typer.Exit(pull_command(spec, settings, as_json=as_json))


@app.command(short_help="Measure how well a model predicts a text.")
def perplexity(
    text: Annotated[Path, typer.Option(help="UTF-8 file with the text to score.")],
    model: Annotated[
        str | None,
        typer.Option(help="Model to load here, as in serve; with --url, the id of a served model."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Original model to compare with, such as the same model in bf16."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Measure a model of the server at this URL instead.")
    ] = None,
    api_key: ApiKey = None,
    context: Annotated[int, typer.Option(min=4, help="Tokens per passage.")] = 512,
    passages: Annotated[
        int | None, typer.Option(min=1, help="Score only this many passages.")
    ] = None,
    device: Annotated[str | None, AS_IN_SERVE] = None,
    dtype: Annotated[str | None, AS_IN_SERVE] = None,
    quantization: Annotated[
        str | None, typer.Option(help="As in serve; the original uses none.")
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="As in serve; the original uses auto.")
    ] = None,
    num_threads: Annotated[str | None, AS_IN_SERVE] = None,
    max_kl: Annotated[
        float | None, typer.Option(min=0.0, help="Exit with code 1 if the divergence is larger.")
    ] = None,
    save: Annotated[
        bool,
        typer.Option("--save", help="Save the result beside the model, for serve --max-kl."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts a text, as llama-perplexity does; with --against, also how
    far its distributions are from the original's."""
    from engine.text.scores.passages import ScoredFile
    from server.terminal import perplexity as measuring

    engine = given(
        device=device,
        dtype=dtype,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        num_threads=num_threads,
    )
    file = ScoredFile(path=text, context=context, passages=passages)
    compares = against is not None
    if not compares and (max_kl is not None or save):
        raise _fail(
            f"{'--save' if max_kl is None else '--max-kl'} needs --against, the model to compare "
            "with"
        )
    _check_where(url, model, loads=compares or bool(engine))
    with _told_in_a_line():
        if url is not None:
            measure = measuring.served(_client_settings(url, api_key), model, file)
        else:
            settings = load_settings({"engine": engine})
            original = None if against is None else ModelSpec.parse(against)
            spec = ModelSpec.parse(model or "")
            measure = measuring.local(settings, spec, original, file, save=save)
    raise typer.Exit(measuring.perplexity_command(measure, as_json=as_json, max_kl=max_kl))


@app.command("lora-train", short_help="Train a LoRA adapter on the CPU.")
@ordered(TrainingOrder)
def lora_train(order: Given, _engine: Given, as_json: Json = False) -> None:
    """Train a LoRA adapter on the CPU that this server, PEFT and diffusers can load. Needs the
    extra `train`."""
    from server.terminal.lora_train import lora_train_command

    with _told_in_a_line():
        settings, training = load_settings({}), TrainingOrder(**order)
    raise typer.Exit(lora_train_command(training, settings, as_json=as_json))


@app.command(short_help="Estimate a model's memory and speed.")
@ordered(
    PlanningOrder,
    *("device", "dtype", "kv_cache_dtype", "max_num_batched_tokens", "lora", "max_loras"),
    *("max_cpu_loras", "lora_memory_gib", "lora_dtype", "replicas"),
)
def plan(
    order: Given,
    engine: Given,
    loras_dir: Annotated[Path | None, AS_IN_SERVE] = None,
    as_json: Json = False,
) -> None:
    """Show how much memory a model needs in each format, and its maximum speed. Reads only the
    headers of its files."""
    from server.terminal.plan import plan_command

    runtime = {} if loras_dir is None else {"loras_dir": loras_dir, "enable_runtime_loading": True}
    with _told_in_a_line():
        spec = ModelSpec.parse(order["model"])
        settings = load_settings({"models": [order["model"]], "engine": engine, **runtime})
        planning = PlanningOrder(**{**order, "model": spec.ref})
    raise typer.Exit(plan_command(planning, settings, spec, as_json=as_json))


@app.command(short_help="Make a quantized checkpoint.")
@ordered(QuantizingOrder)
def quantize(order: Given, _engine: Given, as_json: Json = False) -> None:
    """Make a checkpoint with fewer bits per weight. transformers can read it, too; llama.cpp reads
    the gguf- types."""
    from server.terminal.quantize import quantize_command

    with _told_in_a_line():
        settings, ref = load_settings({}), ModelSpec.parse(order["model"]).ref
        quantizing = QuantizingOrder(**{**order, "model": ref, "method": order["method"].lower()})
    raise typer.Exit(quantize_command(quantizing, settings, as_json=as_json))


@app.command(short_help="Show which kernels run on this machine, and why.")
def kernels(
    cpu_isa: Annotated[
        str | None, typer.Option(help="As in serve. [TANDEM_CPU_ISA]", metavar="ISA")
    ] = None,
) -> None:
    """Show which implementation of each operation runs on this machine, and why."""
    with _told_in_a_line():
        settings = load_settings({"cpu_isa": cpu_isa} if cpu_isa else {})
    # The server imports no torch, so another process looks.
    folder = str(settings.cache_path.absolute() / "kernels")
    given = ("--kernels-dir", folder, "--cpu-isa", settings.cpu_isa)
    raise typer.Exit(subprocess.run(module_command("kernels", *given), check=False).returncode)


@app.command(short_help="Check whether this machine can serve, and how to fix what is missing.")
def doctor(
    model: Annotated[list[str] | None, AS_IN_SERVE] = None,
    config: Annotated[Path | None, AS_IN_SERVE] = None,
    host: Annotated[str | None, AS_IN_SERVE] = None,
    port: Annotated[int | None, AS_IN_SERVE] = None,
    device: Annotated[str | None, AS_IN_SERVE] = None,
    cpu_isa: Annotated[str | None, AS_IN_SERVE] = None,
    cache_dir: Annotated[Path | None, AS_IN_SERVE] = None,
    as_json: Json = False,
) -> None:
    """Check whether this machine can run `tandem serve` with the same options, part by part, and
    how to fix what is missing. Starts and downloads nothing. Exit code 1: it cannot serve."""
    from server.doctor.command import doctor_command

    options = given(
        models=model, config=config, host=host, port=port, cpu_isa=cpu_isa, cache_dir=cache_dir
    )
    with _told_in_a_line():
        settings = load_settings({**options, **({"engine": {"device": device}} if device else {})})
    raise typer.Exit(doctor_command(settings, as_json=as_json))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tandem {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Serve language and image models through the OpenAI API."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _check_packages() -> None:
    """Stop if another distribution has written into our package: the errors that follow would be
    hard to understand."""
    foreign = foreign_distributions()
    if foreign:
        names = " ".join(foreign)
        raise _fail(
            f"the distribution {names} has written files into Tandem's own folders ({HOME}) and "
            f"broken it; run `pip uninstall {names}`, then `pip install --force-reinstall "
            "--no-deps tandem-server`"
        )


def _client_settings(url: str | None, api_key: str | None, **others: Any) -> ClientSettings:
    with _told_in_a_line():
        return load_client_settings({"url": url, "api_key": api_key, **others})


def _check_where(url: str | None, model: str | None, *, loads: bool) -> None:
    """Check that the options say where to measure: at a running server, or with a model loaded
    here."""
    if url is not None and loads:
        raise _fail(
            "--url measures a model as the server runs it, so --against and engine options "
            "cannot go with it; leave out --url to load --model here"
        )
    if url is None and model is None:
        raise _fail(
            "give --model to load a model here, or --url to measure one at a running server"
        )


@contextlib.contextmanager
def _told_in_a_line() -> Iterator[None]:
    """End the command with one line if settings or names of models are wrong."""
    try:
        yield
    except (SettingsProblem, EngineError) as problem:
        raise _fail(str(problem)) from None


def _fail(line: str) -> typer.Exit:
    typer.echo(f"tandem: {line}", err=True)
    return typer.Exit(2)
