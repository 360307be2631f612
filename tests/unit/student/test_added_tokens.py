"""Students that get tokens at given ids: their rows, what of them is trained, and what an export and a reload have."""

import json

import pytest
import torch
from tiny_students import FAMILIES, VISION_FAMILIES, tiny_student
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from vold_packing.marks import Marks
from vold_trainer.config import LoraConfig, OptimConfig, StudentConfig, TokenConfig, TrainConfig
from vold_trainer.config.resuming import changes
from vold_trainer.data import Example
from vold_trainer.errors import UsageError
from vold_trainer.processes.ranks import Ranks, make_accelerator
from vold_trainer.processes.wrapping import PreparedModel
from vold_trainer.rollout.weights import checkpoint_tensors
from vold_trainer.runs.export import write_model
from vold_trainer.runs.saving import Saver
from vold_trainer.runs.start import Start
from vold_trainer.student.added_tokens import RECORD, read_tokens, with_tokens
from vold_trainer.student.batching import make_batch
from vold_trainer.student.models import CompletionScorer, load_student

MARKS = ("<mark>", "</mark>")
CHOSEN = ("qwen3", "smolvlm")  # tied, untied
QUICK = [family if family in CHOSEN else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
HOW = {"all": {"freeze": []}, "frozen": {"freeze": ["embeddings", "head"]}, "lora": {"lora": LoraConfig(r=2)}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a family, made when it is first used."""
    root, made = tmp_path_factory.mktemp("students"), {}

    def folder(family):
        if family not in made:
            made[family] = tiny_student(family, root / family)
        return made[family]

    return folder


def tokens_of(folder):
    first = len(AutoTokenizer.from_pretrained(folder))
    return [TokenConfig(id=first + place, content=mark) for place, mark in enumerate(MARKS)]


def load(folder, how, tokens, **others):
    return load_student(StudentConfig(path=str(folder), add_tokens=tokens, **HOW[how], **others))


def scored(student, tokens):
    """Of a completion with the tokens in it: they are read as well as written."""
    example = Example("t", ({"role": "user", "content": "What is 2 + 2?"},), "")
    batch = make_batch(student, [example], [[40, tokens[0].id, 41, tokens[1].id, 42]])
    return CompletionScorer(student.model)(batch.inputs, batch.predicts_BS, batch.ids_N).logprobs_N


def train(student, tokens, steps=2):
    trainable = [value for value in student.model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        (-scored(student, tokens).mean()).backward()
        optimizer.step()


def matrices(model):
    return {"embedding": model.get_input_embeddings().weight, "head": model.get_output_embeddings().weight}


@pytest.mark.parametrize("family", QUICK)
def test_the_rows_begin_as_the_mean_of_the_pieces_rows(family, folders):
    folder = folders(family)
    tokens = tokens_of(folder)
    base, student = load(folder, "all", None), load(folder, "all", tokens)
    assert [student.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS] == [token.id for token in tokens]
    assert student.vocab_size == tokens[-1].id + 1 == student.model.config.get_text_config().vocab_size
    marks = Marks(base.tokenizer.backend_tokenizer)
    before, after = matrices(base.model), matrices(student.model)
    assert (after["embedding"] is after["head"]) == (before["embedding"] is before["head"])
    for name, matrix in before.items():
        assert torch.equal(after[name][: len(matrix)], matrix)
        for token in tokens:
            torch.testing.assert_close(after[name][token.id], matrix[marks.letters(token.content)].mean(0))


@pytest.mark.parametrize("family", QUICK)
def test_frozen_rows_are_trained_as_those_of_a_trained_embedding(family, folders):
    folder = folders(family)
    tokens = tokens_of(folder)
    ids = [token.id for token in tokens]
    whole, rows = load(folder, "all", tokens), load(folder, "frozen", tokens)
    assert torch.equal(scored(rows, tokens), scored(whole, tokens))
    for student in (whole, rows):
        (-scored(student, tokens).mean()).backward()
    for matrix, module in zip(
        matrices(whole.model).values(),
        (rows.model.get_input_embeddings(), rows.model.get_output_embeddings()),
        strict=True,
    ):
        torch.testing.assert_close(module.added_rows.grad, matrix.grad[ids])
        assert module.weight.grad is None


@pytest.mark.parametrize("how", [pytest.param("all", marks=pytest.mark.slow), "frozen", "lora"])
@pytest.mark.parametrize("family", QUICK)
def test_an_export_and_a_reload_have_the_tokens_and_the_numbers(family, how, folders, tmp_path):
    folder = folders(family)
    tokens = tokens_of(folder)
    student = load(folder, how, tokens)
    before = {name: matrix.detach().clone() for name, matrix in matrices(student.model).items()}
    train(student, tokens)
    with torch.no_grad():
        trained = scored(student, tokens)
        student.save(tmp_path / "model")
        assert torch.equal(scored(student, tokens), trained)
        again = load_student(StudentConfig(path=str(tmp_path / "model")))
        torch.testing.assert_close(scored(again, tokens), trained, rtol=0, atol=1e-5)
    file = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in file["added_tokens"]}
    assert [added[token.content] for token in tokens] == [token.id for token in tokens]
    assert [again.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS] == [token.id for token in tokens]
    assert read_tokens(str(tmp_path / "model" / RECORD)) == tokens
    auto = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "model")
    assert not [name for name in plain.state_dict() if "added" in name]
    if how != "all":
        for name, matrix in matrices(plain).items():
            assert torch.equal(matrix[: tokens[0].id], before[name][: tokens[0].id]), "the other rows are frozen"
            assert not torch.equal(matrix[tokens[0].id :], before[name][tokens[0].id :])
    if how == "frozen":
        sent = checkpoint_tensors(student)
        assert set(sent) == set(checkpoint_tensors(again))
        assert all(torch.equal(value, sent[name]) for name, value in checkpoint_tensors(again).items())


@pytest.mark.parametrize("family", QUICK)
def test_peft_loads_the_adapter_with_its_rows(family, folders, tmp_path):
    from peft import PeftModel

    folder = folders(family)
    tokens = tokens_of(folder)
    student = load(folder, "lora", tokens)
    train(student, tokens)
    student.save(tmp_path / "model")
    auto = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    base = auto.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model" / "adapter")
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, tmp_path / "model" / "adapter")
    ids = torch.tensor([[40, tokens[0].id, 41, tokens[1].id]])
    inputs = {"input_ids": ids} | ({"token_type_ids": torch.zeros_like(ids)} if family == "gemma3" else {})
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, student.model(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("compute", [{"compute": "bfloat16"}, {"compute": "bfloat16", "head_dtype": "float32"}])
def test_the_rows_are_computed_in_the_dtype_of_the_others(compute, folders):
    folder = folders("smolvlm")
    tokens = tokens_of(folder)
    whole, rows = load(folder, "all", tokens, **compute), load(folder, "frozen", tokens, **compute)
    torch.testing.assert_close(scored(rows, tokens), scored(whole, tokens), rtol=0, atol=1e-6)
    half = load(folder, "lora", tokens, dtype="bfloat16")
    assert half.model.get_input_embeddings().added_rows.dtype == torch.float32
    assert torch.isfinite(scored(half, tokens)).all()


@pytest.mark.parametrize("how", ["frozen", "lora"])
def test_a_resumed_run_goes_on_with_the_rows_and_exports_them(how, folders, tmp_path):
    folder = folders("qwen3")
    tokens = tokens_of(folder)
    settings = StudentConfig(path=str(folder), add_tokens="teacher", **HOW[how])

    def running():
        student = load_student(settings, tokens)
        config = TrainConfig(out=tmp_path / "run", student=settings, steps=10, optim=OptimConfig(lr=0.01))
        config = with_tokens(config, student.added_tokens)
        ranks = Ranks(make_accelerator())
        prepared = PreparedModel(student, config.optim, config.steps, config.seed, ranks)
        return student, prepared, Saver(config, student, prepared, ranks, {})

    def step(student, prepared):
        (-scored(student, tokens).mean()).backward()
        prepared.optimizer_step()
        prepared.scheduler_step()

    torch.manual_seed(0)
    first, prepared, saver = running()
    step(first, prepared)
    saver.save(1, {})
    step(first, prepared)
    torch.manual_seed(0)
    second, prepared, saver = running()
    restored = saver.restore(Start(resume=True))
    assert not saver.changes, "where the tokens come from is not what counts"
    step(second, prepared)
    with torch.no_grad():
        assert torch.equal(scored(second, tokens), scored(first, tokens))
        rows = restored.tensors("learning")
        assert any(name.endswith("added_rows") for name in rows)
        write_model(saver.config.student, rows, tmp_path / "exported")
    exported = load_student(StudentConfig(path=str(tmp_path / "exported")))
    key = next(name for name in rows if name.endswith("embed_tokens.added_rows"))
    assert torch.equal(exported.model.get_input_embeddings().weight[[token.id for token in tokens]], rows[key])


def test_a_student_that_has_got_them_before_goes_on_training_their_rows(folders, tmp_path):
    """The second stage: the tokens stand in the student's record, and nothing is missing."""
    folder = folders("qwen3")
    tokens = tokens_of(folder)
    load(folder, "all", tokens).save(tmp_path / "model")
    for offered in ([*tokens], None):
        config = StudentConfig(path=str(tmp_path / "model"), add_tokens="teacher", lora=LoraConfig(r=2))
        student = load_student(config, offered)
        assert list(student.added_tokens) == tokens
        assert not student.new_tokens
        assert student.model.get_input_embeddings().added_rows.shape == (2, 32)
        assert student.vocab_size == tokens[-1].id + 1


def test_nothing_is_added_that_the_student_has(folders):
    folder = folders("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = [TokenConfig(id=index, content=str(token)) for index, token in tokenizer.added_tokens_decoder.items()]
    student = load_student(StudentConfig(path=str(folder), add_tokens="teacher", lora=LoraConfig(r=2)), own)
    assert student.added_tokens == ()
    assert not hasattr(student.model.get_input_embeddings(), "added_rows")
    assert student.tokenizer.get_vocab() == tokenizer.get_vocab()


def test_the_tokens_of_a_folder_a_file_and_a_list_are_the_same(folders, tmp_path):
    folder = folders("qwen3")
    tokens = tokens_of(folder)
    load(folder, "all", tokens).save(tmp_path / "model")
    for source in (str(tmp_path / "model"), str(tmp_path / "model" / "tokenizer.json"), tokens):
        student = load_student(StudentConfig(path=str(folder), add_tokens=source))
        assert list(student.added_tokens) == tokens


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: [TokenConfig(id=5, content="<mark>")], r"'<mark>' is 5, which is '.*' in the student's vocabulary"),
        (lambda n: [TokenConfig(id=n, content="a")], r"'a' is \d+, and the student has it at \d+"),
        (lambda n: [TokenConfig(id=n + 1, content="<mark>")], r"new ids follow on .*'s last, \d+, without a gap"),
        (lambda n: [TokenConfig(id=10**9, content="<mark>")], "without a gap"),
        (lambda n: [TokenConfig(id=n, content="<a1>"), TokenConfig(id=n, content="<b1>")], "named twice"),
        (lambda n: [TokenConfig(id=n + i, content=f"<m{i}>") for i in range(5000)], "5,000 tokens are missing"),
        (lambda n: "teacher", "there is no teacher to take them from"),
        (lambda n: "./nowhere", r"there is no file .*nowhere"),
    ],
    ids=["taken", "elsewhere", "gap", "huge", "twice", "many", "no-teacher", "no-file"],
)  # fmt: skip
def test_tokens_that_cannot_have_their_ids_are_refused_with_the_remedy(make, message, folders):
    folder = folders("qwen3")
    count = len(AutoTokenizer.from_pretrained(folder))
    with pytest.raises(UsageError, match=message) as error:
        load_student(StudentConfig(path=str(folder), add_tokens=make(count)))
    assert "student.add_tokens" in str(error.value)


@pytest.mark.parametrize("text", ["not json", "{}", '{"added_tokens": [{"id": -1, "content": "x"}]}', "[]"])
def test_a_file_that_is_no_tokenizer_is_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UsageError, match=r"student.add_tokens .*no tokenizer.json whose added tokens can be read"):
        read_tokens(str(tmp_path))


def test_what_is_no_source_of_tokens_says_so():
    with pytest.raises(ValueError, match="says not where the tokens come from"):
        StudentConfig(path="x", add_tokens=5)


def test_a_change_of_the_tokens_is_refused_when_a_run_goes_on():
    before = {"student": {"add_tokens": [{"id": 5, "content": "<mark>"}]}}
    (change,) = changes(before, {"student": {"add_tokens": None}}, set())
    assert change.rule == "refused"


def test_no_random_number_is_drawn_for_new_rows(folders):
    folder = folders("smolvlm")
    drawn = []
    for tokens in (None, tokens_of(folder)):
        torch.manual_seed(0)
        load(folder, "all", tokens)
        drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]
