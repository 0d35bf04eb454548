"""The house: requirements, the address, light imports, and the command line's manners."""

import errno
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from distillkit import __version__, cli
from distillkit.course.stamp import repository_address
from distillkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = ("lab", "test", "export", "quant", "dev")
REQUIREMENTS = PROJECT["dependencies"] + [each for name in INSTALLED for each in EXTRAS[name]]


def environment():
    """(the conda part, the pip part) of environment.yml."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [entry for entry in dependencies if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return conda, pip


# --- requirements ---------------------------------------------------------------------------------


def test_environment_yml_equals_pyproject():
    conda, pip = environment()
    assert [entry for entry in pip if entry != "-e ."] == REQUIREMENTS
    assert f"python{PROJECT['requires-python']}" in conda


def test_every_package_in_environment_yml_says_which_chapters_use_it():
    text = (ROOT / "environment.yml").read_text()
    packages = re.findall(r"^ +- ([a-z][\w-]*[<>=].*)$", text, re.MULTILINE)
    assert len(packages) == len(REQUIREMENTS) + 1  # and Python
    for line in packages:
        assert re.search(r" # .*(chapter|\d\d)", line), f"which chapters use it? {line}"


def test_the_names_in_environment_yml_can_be_installed():
    _, pip = environment()
    names = [entry for entry in pip if entry != "-e ."]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "-q", *names]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    unreachable = ("Failed to establish", "Temporary failure in name", "ConnectionError")
    if result.returncode and any(sign in result.stderr for sign in unreachable):
        pytest.skip("the package registry cannot be reached")
    assert result.returncode == 0, result.stderr


def test_constraints_lie_within_the_ranges_of_pyproject():
    ranges = {r.name: r.specifier for r in map(Requirement, [*REQUIREMENTS, *EXTRAS["peers"]])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {pin.name for pin in pins} == set(ranges)
    for pin in pins:
        (only,) = pin.specifier
        assert only.operator == "=="
        assert ranges[pin.name].contains(only.version.replace("*", "0")), pin


def test_the_peers_are_installed_alone():
    (installs,) = re.findall(r"--no-deps (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert installs.split() == [Requirement(peer).name for peer in EXTRAS["peers"]]


def test_constraints_pin_torch_exactly():
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_version_has_one_place():
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


# --- the address ----------------------------------------------------------------------------------


def test_the_address_is_written_by_hand_in_one_place_only():
    address = "/".join(repository_address().split("/")[-2:])
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = [ROOT / name for name in listed.stdout.splitlines()]
    texts = [path for path in texts if path.suffix in {".py", ".md", ".toml", ".yml", ".txt"}]
    holders = {path.name for path in texts if path.is_file() and address in path.read_text()}
    assert holders == {"pyproject.toml", "README.md"}
    readme = (ROOT / "README.md").read_text()
    assert address not in re.sub(r"<!-- stamped.*?/stamped -->", "", readme, flags=re.DOTALL)


# --- light imports --------------------------------------------------------------------------------


def python(code, **variables):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **variables}
    ).stdout


def test_import_is_light():
    timed = (
        "import time; t = time.perf_counter(); import distillkit; print(time.perf_counter() - t)"
    )
    assert min(float(python(timed)) for _ in range(3)) <= 0.3
    heavy = (
        "import sys, distillkit; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert python(heavy).strip() == "[]"


def test_help_is_quick():
    def seconds():
        start = time.perf_counter()
        python("from distillkit.cli import main; main(['--help'])")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) <= 0.5


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def room(monkeypatch):
    """A sub-command `try` whose main raises whatever the test puts into `room.problem`."""
    room = SimpleNamespace(problem=None, add_arguments=lambda parser: parser.add_argument("--n"))

    def main(args):
        if room.problem is not None:
            raise room.problem
        return 1 if args.n == "failing" else None

    room.main = main
    monkeypatch.setitem(sys.modules, "distillkit_test_room", room)
    monkeypatch.setitem(cli.COMMANDS, "try", ("distillkit_test_room", "try it"))
    return room


class SafetensorError(Exception):
    """Like the one of safetensors, which is no OSError."""


def test_exit_status_of_what_ran(room):
    assert cli.main(["try", "--n", "1"]) == 0
    assert cli.main(["try", "--n", "failing"]) == 1


@pytest.mark.parametrize(
    ("problem", "status", "words"),
    [
        (UserError("no file x.jsonl: give a path"), 2, "no file x.jsonl: give a path"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "no space left on the disk"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 2, "no space left"),
    ],
)
def test_a_problem_that_the_user_can_mend_is_one_sentence(room, capsys, problem, status, words):
    room.problem = problem
    assert cli.main(["try"]) == status
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_bug_keeps_its_traceback(room):
    room.problem = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["try"])


def test_a_reader_that_has_gone_is_no_bug():
    said = subprocess.Popen(
        [sys.executable, "-m", "distillkit.cli", "chat", "--visitor", "26"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    said.stdout.readline()
    said.stdout.close()
    assert said.wait(120) == cli.NOBODY_READS
    assert "Traceback" not in said.stderr.read()


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nbclient", None)
    monkeypatch.delitem(sys.modules, "distillkit.course.run", raising=False)
    assert cli.main(["run"]) == 2
    assert "nbclient" in capsys.readouterr().err


def test_help_names_every_command_and_imports_no_room(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said and sentence in said for name, (_, sentence) in cli.COMMANDS.items())


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"distillkit {name}" in capsys.readouterr().out


# --- the README -----------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()
COMMANDS = [line for line in re.findall(r"^distillkit .*$", README, re.MULTILINE)]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_readme_are_understood(command):
    arguments = shlex.split(command)[1:]
    cli.build_parser(arguments[0]).parse_args(arguments)


@pytest.mark.parametrize(
    "name", "run lab test test-all test-peers chapters exercises results stamp".split()
)
def test_make_help_names_every_target(name):
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(rf"make {name} +\w", said.stdout)
