"""Damaged files of runs, tokens, tokenizers and searches: a sentence and exit status 2, or the same result as before."""

import hashlib
import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from testbeds import cli
from testbeds.lm.text.tokens import read_tokens

ROUNDS = 2
"""Damages of each kind and file; the seeds are fixed."""
OPTIONS = (
    "--preset", "tiny", "--format", "int4/absmax/block=16", "--steps", "2", "--batch", "2", "--device", "cpu",
    "--set", "model.width=16", "model.depth=1", "model.heads=2", "model.hidden=16", "model.context=16",
    "optimizer.warmup=1", "evaluation.windows=4", "evaluation.samples=2", "run.log_every=1",
)  # fmt: skip


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs a command; returns exit status, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "500")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(one) for one in arguments])
        return ended.value.code, *capsys.readouterr()

    return run


def damaged(content: bytes, how: str, draw: random.Random) -> bytes:
    """``content`` with a bit flipped, cut off, or a stretch replaced, at a place drawn."""
    place = draw.randrange(len(content))
    if how == "flip":
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if how == "cut":
        return content[:place]
    return content[:place] + draw.randbytes(8) + content[place + 8 :]


def replaced(value, draw: random.Random):
    """A JSON value with one of its parts replaced or removed."""
    if draw.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return draw.choice([None, True, -1, 1.5, 10**30, "text", [], {}, [1], {"a": 1}])
    out = dict(value) if isinstance(value, dict) else list(value)
    key = draw.choice(list(out) if isinstance(out, dict) else range(len(out)))
    if draw.random() < 0.3:
        del out[key]
    else:
        out[key] = replaced(out[key], draw)
    return out


def assert_survives(command, path: Path, arguments, outcome, rounds=None, after=lambda: None, fine=(0,)):
    """Whatever happens to ``path``, the command says what is wrong, or does what it did before."""
    content = path.read_bytes()
    before = command(*arguments)
    wanted = outcome(before)
    assert before[0] == 0, before
    kinds = ["flip", "cut", "stretch"] + (["value"] if path.suffix == ".json" else [])
    for how in kinds:
        for number in range(rounds or ROUNDS):
            draw = random.Random(f"{path.name} {how} {number}")
            if how == "value":
                path.write_text(json.dumps(replaced(json.loads(content), draw)))
            else:
                path.write_bytes(damaged(content, how, draw))
            after()
            found = command(*arguments)
            if found[0] not in fine:
                assert found[0] == 2 and found[2].strip().splitlines()[-1].startswith("lotion: "), (how, number, found)
                assert "Traceback" not in found[2]
            else:
                assert outcome(found) == wanted, (how, number, found)
            path.write_bytes(content)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    lines = (json.dumps({"text": f"Text number {k} says {k * k}, and {k + 1} follows."}) for k in range(200))
    (folder / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit):
        cli.main(
            ["prepare", "--files", str(folder / "a.jsonl"), "--out", str(folder / "out"), "--tokens-per-file", "4000"]
        )
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokens):
    """A finished run of LSQ, whose method has a state of its own."""
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.raises(SystemExit):
        cli.main(["train", *OPTIONS, "--method", "lsq", "--tokens", str(tokens / "out"), "--out", str(out)])
    return out


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def tokens_of(run):
    return json.loads((run / "config.json").read_text())["data"]["tokens"]


def losses(run):
    return lambda found: json.loads((run / "result.json").read_text())["metrics"]


def signed(folder: Path):
    """Make the manifest's checksums those of the files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = [len(data), hashlib.sha256(data).hexdigest()]
    manifest.pop("sha256", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("file", ["model.pt", "method.pt", "manifest.json"])
def test_damaged_checkpoints_are_not_exported(command, run, tmp_path, file):
    out = tmp_path / "m.safetensors"
    path = run / "checkpoints" / "step-00000002" / file
    assert_survives(command, path, ["export", run, "--out", out], lambda _: out.read_bytes())


@pytest.mark.parametrize("file", ["model.pt", "method.pt", "optimizer.pt", "rng.pt"])
def test_checkpoints_with_fitting_checksums_are_read_or_refused(command, run, tmp_path, file):
    """What torch reads may be other numbers, also such that the run diverges; it may not be a traceback."""
    path = run / "checkpoints" / "step-00000002" / file
    arguments = ["train", *OPTIONS, "--method", "lsq", "--tokens", tokens_of(run), "--out", run]

    def after():
        signed(path.parent)
        (run / "result.json").unlink(missing_ok=True)

    assert_survives(command, path, arguments, lambda _: None, after=after, fine=(0, 1))


@pytest.mark.parametrize("file", ["result.json", "log.jsonl", "checkpoints/step-00000002/manifest.json"])
def test_damaged_folders_of_runs_are_answered(command, run, file):
    """A digit of a stored loss may be another; what is evaluated again is what it was."""
    arguments = ["train", *OPTIONS, "--method", "lsq", "--tokens", tokens_of(run), "--out", run]
    if file == "result.json":
        assert_survives(command, run / file, arguments, lambda _: None)
    else:
        again = partial((run / "result.json").unlink, missing_ok=True)
        assert_survives(command, run / file, arguments, losses(run), after=again)


@pytest.mark.parametrize("file", ["train-00000.tokens", "validation-00000.tokens"])
def test_damaged_tokens_are_answered(command, run, tokens, tmp_path, file):
    folder = Path(shutil.copytree(tokens / "out", tmp_path / "tokens"))
    out = tmp_path / "new"
    arguments = ["train", *OPTIONS, "--method", "ptq", "--tokens", folder, "--out", out]
    assert_survives(
        command, folder / file, arguments, losses(out), after=lambda: shutil.rmtree(out, ignore_errors=True)
    )


def test_damaged_headers_of_tokens_are_named(tokens, tmp_path):
    """Every field of the header, by every kind of value."""
    path = Path(shutil.copy(tokens / "out" / "train-00000.tokens", tmp_path))
    content = path.read_bytes()
    header = json.loads(content[8:1024])
    for name in header:
        for value in (None, True, -1, 1.5, 10**30, "text", [], {}):
            if (name, value) in (("tokenizer", "text"), ("end_of_text", None)):
                continue  # a valid file of another kind
            changed = json.dumps({**header, name: value}).encode()
            path.write_bytes((content[:8] + changed).ljust(1024) + content[1024:])
            with pytest.raises(ValueError, match=r"train-00000\.tokens (has a damaged header|is damaged|is truncated)"):
                read_tokens(path)


def test_damaged_tokenizers_and_records_are_answered(command, tokens, tmp_path):
    pytest.importorskip("tokenizers")
    arguments = ["prepare", "--files", tokens / "a.jsonl", "--learn", "300", "--out", tmp_path / "a"]
    assert command(*arguments)[0] == 0
    assert_survives(command, tmp_path / "a" / "prepared.json", arguments, lambda _: None)
    path, out = tmp_path / "a" / "tokenizer.json", tmp_path / "b"
    arguments = ["prepare", "--files", tokens / "a.jsonl", "--tokenizer", path, "--out", out]
    assert_survives(command, path, arguments, lambda _: None, after=partial(shutil.rmtree, out, ignore_errors=True))


def test_damaged_searches_are_answered(command, tmp_path):
    pytest.importorskip("optuna")
    arguments = ["tune", *OPTIONS, "--trials", "1", "--seeds", "1", "--out", tmp_path / "t"]
    assert command(*arguments)[0] == 0
    assert_survives(command, tmp_path / "t" / "study.sqlite", arguments, lambda found: found[1], rounds=3 * ROUNDS)
