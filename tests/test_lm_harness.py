"""Tasks of lm-evaluation-harness: likelihoods against the model by hand, own tasks, and three kinds of weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from testbeds import cli
from testbeds.lm.loop.evaluate import estimate
from testbeds.lm.loop.opened import open_run
from testbeds.lm.loop.train import train
from testbeds.lm.measure import harness
from testbeds.lm.measure.harness_model import LENGTHS, LONGEST, continuation, generation, language_model, scores
from testbeds.lm.measure.tasks import held_out
from testbeds.lm.model.decoder import Decoder
from testbeds.lm.text.prepare import learned_tokenizer, prepare
from testbeds.lm.text.sources import text_files
from testbeds.lm.text.tokenizer import Bytes
from tests.lm_cases import small

pytest.importorskip("lm_eval")
CONFIG = small(method__name="qat", method__format="ternary/absmax/row", steps=30)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def model():
    made = Decoder(CONFIG.model)
    made.initialize(1)
    with torch.no_grad():
        made.embedding.weight.mul_(20)  # far from uniform
    return made.eval()


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_scores_are_the_models_whatever_the_batch(model, batch):
    rng = np.random.default_rng(0)
    pairs = [
        (rng.integers(1, 256, before).tolist(), rng.integers(1, 256, after).tolist())
        for before, after in [(1, 1), (5, 3), (9, 7), (16, 1), (40, 16), (1, 16), (4, 0)]
    ]
    found = scores(model, pairs, batch)
    for (before, after), (value, greedy) in zip(pairs, found, strict=True):
        # One token at a time, from as much context as the window leaves.
        row, expected, likeliest = [*before, *after][-17:], 0.0, True
        for place in range(len(row) - len(after), len(row)):
            logs = model(torch.tensor([row[:place]])).detach()[0, -1].log_softmax(-1)
            expected += float(logs[row[place]])
            likeliest &= int(logs.argmax()) == row[place]
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-6) and greedy == likeliest
    for bad in (([], [1]), ([1], [1] * 17)):
        with pytest.raises(ValueError, match="at most 16"):
            scores(model, [bad], 4)


def test_continuations_are_greedy_and_end_where_told(model):
    spoken, ids = Bytes(), [0, 65, 66]
    text = continuation(model, spoken, ids, [], 8)
    row = list(ids)
    for _ in range(8):
        row.append(int(model(torch.tensor([row[-16:]]))[0, -1].argmax()))
    assert text == bytes(row[3:]).split(b"\0")[0].decode(errors="replace") and len(text) > 2
    assert continuation(model, spoken, ids, [text[2:], "\ufffe"], 8) == text[: text.find(text[2:])]
    assert scores(model, [(ids, row[3:])], 1)[0][1]


@pytest.mark.parametrize(
    "settings, until, longest",
    [
        ({}, [], LONGEST),
        ({"until": [""]}, [], LONGEST),
        ({"until": ["", "a"], "max_gen_toks": 5}, ["a"], 5),
        ({"until": "\n", "do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 50}, ["\n"], LONGEST),
        ({"until": None, "temperature": 0.0, "top_p": 0.5}, [], LONGEST),
        ({"do_sample": True, "temperature": 0}, [], LONGEST),
        ({"max_tokens": 3, "max_new_tokens": 2, "max_gen_toks": None}, [], 2),
        ({"max_completion_tokens": 0, "num_beams": 1, "repetition_penalty": 1.0, "seed": 3}, [], 0),
    ],
)
def test_generation_settings_are_honoured(settings, until, longest):
    assert generation(settings) == (until, longest)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"do_sample": True}, "do_sample = True"),
        ({"do_sample": True, "temperature": 0.5}, "do_sample = True"),
        ({"temperature": 0.5}, "temperature = 0.5"),
        ({"temperature": "hot"}, "temperature = 'hot'"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"top_k": 5}, "top_k = 5"),
        ({"top_p": 0.5}, "top_p = 0.5"),
        ({"min_p": 0.5}, "min_p = 0.5"),
        ({"num_beams": 4}, "num_beams = 4; valid: 1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty = 1.2; valid: 1"),
        ({"max_length": 50}, "no setting 'max_length'; valid: until, do_sample, max_gen_toks"),
        ({"stop": ["a"]}, "no setting 'stop'"),
        ({"until": [3]}, r"until = \[3\]"),
        ({"until": 3}, "until = 3"),
        *(({name: value}, f"{name} = ") for name in LENGTHS for value in (-1, 2.5, "3", True)),
    ],
)
def test_generation_settings_that_ask_for_something_else_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"^generation_kwargs: {name}"):
        generation(settings)


def test_the_harness_model_obeys_the_settings(model):
    from lm_eval.api.instance import Instance

    lm = language_model(model, Bytes(), 4)

    def made(settings):
        return lm.generate_until([Instance("generate_until", {}, ("AB", settings), 0)])[0]

    text = made({"max_gen_toks": 8})
    assert text == continuation(model, Bytes(), [0, 65, 66], [], 8) and text
    assert made({"until": [""], "max_new_tokens": 8}) == text and made({"max_tokens": 0}) == ""
    with pytest.raises(ValueError, match=r"temperature = 1\.0 asks for samples"):
        made({"temperature": 1.0})


# --- standard errors -------------------------------------------------------------------------------------------------


def test_parts_have_the_metric_as_mean_and_its_spread():
    rng = np.random.default_rng(3)
    right = rng.integers(0, 2, 50).astype(float)
    assert np.array_equal(harness.parts("acc", right.mean(), right.tolist()), right)
    assert harness.parts("f1", 0.7, right.tolist()) is None
    assert harness.parts("acc", 1.0, [1.0]) is None
    # Perplexities: the spread of the linearized ones is that over many data sets.
    count, sets = 400, 3000
    words = rng.integers(20, 60, (sets, count)).astype(float)
    likelihoods = -2.0 * words + rng.normal(size=words.shape) * words**0.5
    for name, metric in [
        ("word_perplexity", lambda ll, n: math.exp(-ll.sum() / n.sum())),
        ("bits_per_byte", lambda ll, n: -ll.sum() / n.sum() / math.log(2)),
    ]:
        values = np.array([metric(ll, n) for ll, n in zip(likelihoods, words, strict=True)])
        pairs = list(zip(likelihoods[0], words[0], strict=True))
        found = estimate(harness.parts(name, values[0], pairs))
        assert found.mean == pytest.approx(values[0])
        # 3000 sets know the spread to 1.3 %, one set of 400 its own to 3.5 %: four standard errors.
        assert found.standard_error == pytest.approx(values.std(), rel=0.15)


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_packaged_questions_are_fair():
    made = held_out.words()["test"]
    assert len(made) == held_out.QUESTIONS == len({row["context"] for row in made})
    text = " ".join(held_out.addresses())
    for row in made:
        assert len(set(row["choices"])) == 4 and len({len(word) for word in row["choices"]}) == 1
        assert f"{row['context']} {row['choices'][row['label']]}" in text
    # Each place is right in a quarter of 256 (binomial, five standard deviations).
    counts = np.bincount([row["label"] for row in made], minlength=4)
    assert abs(counts - 64).max() <= 5 * math.sqrt(256 * 3 / 16)
    assert made.to_list() == held_out.words()["test"].to_list()
    passages = held_out.passages()["test"]["text"]
    assert len(set(passages)) == held_out.PASSAGES and all(one in text for one in passages)


def own_task(folder, answers):
    """A task with data of its own beside it: does "aaaa" go on with the first or the second choice?"""
    rows = [{"question": f"aaaa{k}", "choices": ["b", "c"], "answer": answer} for k, answer in enumerate(answers)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return str(folder / "mine.yaml")


CODE = {
    "process_docs: !function evil.run": "line 9: process_docs: !function evil.run runs Python code",
    "class: !function evil.Task": "class: !function evil.Task runs Python code",
    "metric_list: [{metric: !function evil.run}]": "metric: !function",
    "metric_list: [{metric: ./evil.py}]": "metric: ./evil.py may run Python code",
    "metric_list: [{metric: acc, hf_evaluate: true}]": "hf_evaluate: true may run",
    "dataset_path: pandas": "dataset_path: pandas may run",
    "dataset_kwargs: {trust_remote_code: true}": "trust_remote_code: true may run",
    "include: other.yaml": "other.yaml, line 1: doc_to_text: !function",
    "description: !!python/name:os.system ''": "runs Python code",
}


@pytest.mark.parametrize("line", CODE)
def test_task_files_that_run_code_are_refused(tmp_path, line):
    path = own_task(tmp_path, [0])
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    (tmp_path / "other.yaml").write_text("doc_to_text: !function evil.run\n")
    text = [one for one in Path(path).read_text().splitlines() if one.partition(":")[0] != line.partition(":")[0]]
    (tmp_path / "mine.yaml").write_text("\n".join([*text, line]))
    number = len(text) + 1
    with pytest.raises(
        ValueError,
        match=f"mine.yaml' cannot be loaded: .*{CODE[line].replace('line 9', f'line {number}')}.*--allow-code",
    ):
        harness.load_tasks([path])


def test_trusted_task_files_run_code_and_templates_are_kept_in(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = own_task(tmp_path, [0, 1])
    (tmp_path / "mine_code.py").write_text("def text(doc):\n    return doc['question']\n")
    plain = Path(path).read_text()
    trusted = plain.replace("'{{question}}'", "!function mine_code.text")
    (tmp_path / "mine.yaml").write_text(trusted)
    found = [harness.evaluate_run(run, [path], device="cpu", allow_code=True)]
    (tmp_path / "mine.yaml").write_text(plain)
    found.append(harness.evaluate_run(run, [path], device="cpu"))
    assert found[0]["tasks"] == found[1]["tasks"]
    (tmp_path / "mine.yaml").write_text(plain.replace("{{question}}", "{{ question.__class__.__mro__ }}"))
    with pytest.raises(ValueError, match=r"'__class__' of 'str' object is unsafe"):
        harness.evaluate_run(run, [path], device="cpu")


def test_command_compares_float_rtn_and_rr(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    task = own_task(tmp_path, [0, 1, 1, 0, 1, 0])
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", str(run), "--tasks", task, "sotu_perplexity", "--limit", "6", "--device", "cpu"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and "mine acc: float" in out and out.rstrip().endswith("tasks.json")
    result = json.loads((run / "tasks.json").read_text())
    assert (result["method"], result["format"], result["step"]) == ("qat", "ternary/absmax/row", 30)
    assert result["tasks"]["mine"]["documents"] == 6 and result["tasks"]["mine"]["samples"] == 2

    opened = open_run(run)
    texts = held_out.passages()["test"]["text"][:6]
    weights = {name: opened.model.get_parameter(name).detach().clone() for name in opened.casting.names}
    changes = {
        "float": [lambda name, w: w],
        "rtn": [opened.casting.nearest],
        "rr": [opened.casting.rounding(0, sample) for sample in (0, 1)],
    }
    rows = result["tasks"]["sotu_perplexity"]["metrics"]
    for kind, several in changes.items():
        perplexities, accuracies = [], []
        for change in several:
            for name, w in weights.items():
                opened.model.get_parameter(name).detach().copy_(change(name, w))
            total = 0.0
            for text in texts:
                ids = [0, *text.encode()]
                for start in range(0, len(ids) - 1, 16):
                    # The last piece is read from as far back as the model takes.
                    end = min(start + 16, len(ids) - 1)
                    row = torch.tensor([ids[max(0, end - 16) : end + 1]])
                    total += float(
                        opened.model(row[:, :-1], row[:, 1:], "none").detach()[0, start - end :].double().sum()
                    )
            perplexities.append(math.exp(total / sum(len(text.encode()) for text in texts)))
            right = []
            for k, answer in enumerate([0, 1, 1, 0, 1, 0]):
                logs = [scores(opened.model, [([0, *b"aaaa", 48 + k], [32, letter])], 1)[0][0] for letter in b"bc"]
                right.append(int(np.argmax(logs)) == answer)
            accuracies.append(np.mean(right))
        assert rows["byte_perplexity"][kind] == pytest.approx(np.mean(perplexities), rel=1e-5)
        assert result["tasks"]["mine"]["metrics"]["acc"][kind] == pytest.approx(np.mean(accuracies))
    one = rows["bits_per_byte"]
    assert one["rtn_difference"] == pytest.approx(one["rtn"] - one["float"]) != 0
    # Paired by document: what documents share does not count.
    assert 0 < one["rtn_difference_standard_error"] < one["rtn_standard_error"]


def test_plain_training_and_learned_tokenizer(tmp_path):
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(f"Text number {k} says {k * k}, and {k + 1} follows." for k in range(300)))
    texts = text_files([source], "\n\n")
    spoken = learned_tokenizer(texts, 300, tmp_path / "tokens" / "tokenizer.json")
    prepare(tmp_path / "tokens", texts, spoken)
    config = small(method__name="none", steps=2, data__tokens=str(tmp_path / "tokens"), model__vocabulary=300)
    train(config, tmp_path / "run")
    result = harness.evaluate_run(tmp_path / "run", ["sotu_words"], limit=3, device="cpu")
    row = result["tasks"]["sotu_words"]["metrics"]["acc"]
    assert set(row) == {"float", "float_standard_error"} and result["format"] is None
    (tmp_path / "tokens" / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(FileNotFoundError, match=r"made by tokenizer bpe-.*give --tokenizer"):
        harness.evaluate_run(tmp_path / "run", ["sotu_words"], device="cpu")
    opened = open_run(tmp_path / "run")
    found = harness.tokenizer_of(opened, str(tmp_path / "elsewhere.json"))
    assert found.decode(found.encode(["Text, and é"])[0].tolist()) == "Text, and é"
    other = learned_tokenizer(texts, 290, tmp_path / "other.json")
    with pytest.raises(ValueError, match=f"other.json is tokenizer {other.name}, but"):
        harness.tokenizer_of(opened, str(tmp_path / "other.json"))


def test_what_is_not_there_is_named(run, tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("task: [")
    (tmp_path / "lost.yaml").write_text(
        "task: lost\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\ntest_split: test\n"
    )
    for arguments, message in [
        ((run, "--tasks", "gone.yaml"), "task 'gone.yaml': no such file"),
        ((run, "--tasks", tmp_path / "broken.yaml"), "broken.yaml' cannot be loaded"),
        ((run, "--tasks", tmp_path / "lost.yaml"), "lost.yaml' cannot be loaded"),
        ((run, "--samples", "1"), "samples = 1: must be at least 2"),
        ((tmp_path,), "holds no checkpoint"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["evaluate", *map(str, arguments), "--device", "cpu"])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and message in err and "Traceback" not in err, err
