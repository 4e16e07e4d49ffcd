"""An error as users see it: one line with the file, what is wrong and the remedy."""

import pickle

import pytest

from kimagenet import cli
from pipelines.errors import Blocked, RunFailed, ToBeResumed, UserError, did_you_mean, first_line, reason


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such split"), "no such split"),
        (UserError("no such split", path="data"), "data: no such split"),
        (UserError("too few records", remedy="choose a smaller batch"), "too few records; choose a smaller batch"),
        (UserError("is missing", path="a\nb", remedy="copy it\x1b[2J again"), "a b: is missing; copy it [2J again"),
    ],
)
def test_an_error_is_one_line(error: UserError, line: str) -> None:
    assert str(error) == line


@pytest.mark.parametrize("kind", [UserError, RunFailed, Blocked, ToBeResumed])
def test_the_fields_pass_from_worker_processes(kind: type[UserError]) -> None:
    error = pickle.loads(pickle.dumps(kind("too few", path="x", remedy="less", setting="batch_size")))
    assert (type(error), error.what, error.path, error.remedy, error.setting) == (
        kind,
        "too few",
        "x",
        "less",
        "batch_size",
    )


@pytest.mark.parametrize(("setting", "end"), [("batch_size", "less (--batch-size)"), ("rank", "less"), ("", "less")])
def test_command_lines_add_the_flag(setting: str, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.Parser("python -m x", "", "")
    parser.add_argument("--batch-size")

    def fail(_: object) -> None:
        raise UserError("too few", remedy="less", setting=setting)

    assert cli.run(parser, fail, []) == 2
    assert capsys.readouterr().err == f"error: too few; {end}\n"


def test_the_first_line_of_an_empty_message_is_its_type() -> None:
    assert [first_line(error) for error in (ValueError("a\nb"), KeyError(), OSError())] == ["a", "KeyError", "OSError"]


def test_a_mistyped_name_gets_a_suggestion() -> None:
    assert did_you_mean("resnet5", ["demo", "resnet50"]) == "did you mean resnet50?"
    assert did_you_mean("foo", ["demo", "resnet50"]) == ""
    assert reason(OSError(28, "No space left on device", "x")) == "No space left on device"
    assert reason(OSError("it failed")) == "it failed"
