"""The command line around the subcommands: errors are one line, never a traceback."""

from __future__ import annotations

from importlib import metadata

import pytest

from kvtier.cli import main as cli
from kvtier.errors import StoreError


def command_that(act):
    """A subcommand `act` that does `act`."""

    class Command:
        def add_parser(self, subparsers):
            subparsers.add_parser("act").set_defaults(run=self.run)

        def run(self, args):
            return act()

    return Command()


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (lambda: 3, 3, ""),
        (raising(StoreError("disk.path: no space")), 2, "kvtier: disk.path: no space\n"),
        (raising(KeyboardInterrupt()), 130, ""),
    ],
)
def test_a_subcommand_ends_with_its_exit_code_and_an_error_is_one_line(monkeypatch, capsys, act, code, said):
    monkeypatch.setattr(cli, "COMMANDS", (command_that(act),))
    assert cli.main(["act"]) == code
    assert capsys.readouterr().err == said


def test_the_version_is_the_installed_one(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"kvtier {metadata.version('kvtier')}\n")


def test_a_tree_that_was_never_installed_still_has_a_version(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "version", raising_lookup)
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == "kvtier (not installed)\n"


def raising_lookup(name):
    raise metadata.PackageNotFoundError(name)


def test_no_subcommand_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "usage: kvtier" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [None, *(module.__name__.rpartition(".")[2].rstrip("_") for module in cli.COMMANDS)]
)
def test_every_command_explains_itself(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"] if command is None else [command, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: kvtier")
