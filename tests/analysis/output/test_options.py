import ast
from pathlib import Path

from typer.main import get_command

from repshift import analysis
from repshift.analysis.cli import app

ROOMS = Path(analysis.__file__).parent

# Options of one name, and the commands that spell them themselves because they do not mean the same there
OWN = {
    "attention": {"heatmap"},  # whether it is drawn
    "batch_size": {"curves", "statistics", "throughput"},  # which of the benchmark; at least 1; several
    "blocks": {"ablation", "heatmap", "statistics"},  # what is done at them, and at which by default
    "candidates": {"answering", "retrieval"},  # answers; texts and videos
    "data": {"evaluation", "finetuning"},  # optional, beside --data-dir; with train/ inside, and an option
    "dataset": {"answering", "evaluation", "retrieval"},  # of questions; also streams; of captions
    "device": {"report"},  # the CPU by default
    "drop": {"finetuning", "report"},  # this or --recipe; by default that of the results
    "epochs": {"finetuning", "zoo"},  # of the data; of canvases, by default the recipe's
    "frames": {"heatmap", "throughput"},  # of one video; of none
    "model": {"ablation", "evaluation", "report", "throughput"},  # has a default; several; of the results; or a suite
    "num_samples": {"statistics"},  # never all, and at least 1
    "output": {"export", "report"},  # of an ending by the format; a page, with a short form
    "page": {"catalogue", "throughput"},  # of counts by family; of a suite's tables
    "pretrained": {"ablation"},  # on without --model
    "resume": {"finetuning"},  # goes without saying
    "seed": {  # of what
        "ablation",
        "answering",
        "evaluation",
        "fidelity",
        "finetuning",
        "probe",
        "retrieval",
        "statistics",
        "zoo",
    },
    "precision": {"throughput", "export"},  # what is timed may be of mixed precision, too
    "workers": {"finetuning"},  # always as many, since what they draw depends on it
}


def spellings(source):
    """Map the parameters of the command in a source to how they are spelled."""
    return {
        argument.arg: ast.unparse(argument.annotation)
        for function in ast.parse(source).body
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_")
        for argument in function.args.args
        if argument.arg != "context"  # which is no option, but tells which ones were given
    }


def of_several_commands(sources):
    """Map the parameters that several commands have to how each command spells them."""
    found = {}
    for command, source in sources.items():
        for name, spelling in spellings(source).items():
            found.setdefault(name, {})[command] = spelling
    return {name: spelled for name, spelled in found.items() if len(spelled) > 1}


def own_spellings(sources):
    """Map the parameters that several commands have to the commands that do not use an alias for them."""
    own = {
        name: {command for command, spelling in spelled.items() if not spelling.startswith("options.")}
        for name, spelled in of_several_commands(sources).items()
    }
    return {name: commands for name, commands in own.items() if commands}


def sources_of_commands():
    return {path.parent.name: path.read_text(encoding="utf-8") for path in sorted(ROOMS.glob("*/command.py"))}


def test_an_option_of_several_commands_is_spelled_once():
    assert own_spellings(sources_of_commands()) == OWN


def test_a_second_spelling_is_noticed():
    inline = 'def command(distance: Annotated[str, typer.Option(help="l2 or l1.")]) -> None: ...'
    shared = "def command(distance: options.Distance) -> None: ..."
    for sources, own in (
        ({"one": inline, "two": inline}, {"distance": {"one", "two"}}),
        ({"one": shared, "two": inline}, {"distance": {"two"}}),
        ({"one": shared, "two": shared}, {}),
        ({"one": inline}, {}),
    ):
        assert own_spellings(sources) == own


def test_only_what_is_written_and_what_sees_videos_has_several_aliases():
    several = of_several_commands(sources_of_commands())
    aliases = {name: {text for text in several[name].values() if text.startswith("options.")} for name in several}
    assert {name for name in aliases if len(aliases[name]) > 1} == {"methods", "model", "output"}


def test_every_alias_serves_several_commands():
    assigned = ast.parse((ROOMS / "output" / "options.py").read_text(encoding="utf-8")).body
    aliases = [f"options.{node.targets[0].id}" for node in assigned if isinstance(node, ast.Assign)]
    used = [text for source in sources_of_commands().values() for text in spellings(source).values()]
    assert aliases
    assert [alias for alias in aliases if used.count(alias) < 2] == []


def test_the_sources_hold_the_options_that_users_see():
    top = dict(get_command(app).commands)
    commands = [*top.pop("zoo").commands.values(), *top.values()]
    seen = sorted(sorted(parameter.name for parameter in command.params) for command in commands)
    assert seen == sorted(sorted(spellings(source)) for source in sources_of_commands().values())
