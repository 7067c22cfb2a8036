"""A text model learns a sentence; what is saved is served, by PEFT and by this server alike."""

import dataclasses
import json
import random
import shutil

import pytest
import torch
import transformers
from peft import PeftModel

from engine.commands.training.run import run
from engine.commands.training.text_data import TextExample
from engine.commands.training.text_learner import IGNORED, load_text_learner, padded
from engine.contract.orders import TrainingOrder
from engine.errors import InvalidParameter, ShapeMismatch, UnsupportedFeature
from engine.lora.peft_files import ModelShapes, plan_adapter
from engine.text.tokenizer import load_tokenizer
from tests.helpers.models.checkpoints import in_folder
from tests.helpers.models.json_files import change_json

pytestmark = pytest.mark.filterwarnings(
    # PEFT asks transformers for it.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
QUESTION, ANSWER = "Colour?", "green green blue"
PLENTY = 1 << 40


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=3, hidden_size=64, intermediate_size=96)


@pytest.fixture
def order(folder, tmp_path):
    data = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    data.write_text(json.dumps({"messages": messages}) + "\n")
    return TrainingOrder(
        task="text",
        model=str(folder),
        data=data,
        output=tmp_path / "out",
        steps=40,
        batch_size=2,
        learning_rate=0.02,
        rank=8,
        alpha=16,
        save_every=15,
        sample_every=40,
        sample_prompts=(QUESTION,),
        seed=random.randrange(1000),
        cache_dir=tmp_path / "cache",
    )


def test_it_learns_and_others_load_it(order, folder):
    told = []
    report = run(order, PLENTY, told.append)
    assert report["last_loss"] < 0.5 * report["first_loss"]
    assert ANSWER in (order.output / "samples" / "step-00000040.txt").read_text()
    saved = order.output / "adapter"
    stated = json.loads((saved / "adapter_config.json").read_text())
    assert stated["base_model_name_or_path"] == str(folder)

    tokenizer = load_tokenizer(folder)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shapes = {
        name: (layer.out_features, layer.in_features)
        for name, layer in base.named_modules()
        if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    }
    ours = plan_adapter(saved, ModelShapes(shapes), torch.float32).read()
    assert ours.report.num_layers == len(shapes)
    assert ours.report.ranks == (8,)
    model = PeftModel.from_pretrained(base, saved)
    prompt = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    token_ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    answer = model.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )
    assert ANSWER in tokenizer.decode(answer[0, token_ids.shape[1] :].tolist())


def test_one_that_is_resumed_is_the_same(order, tmp_path):
    whole = run(dataclasses.replace(order, sample_every=0), PLENTY, lambda message: None)
    again = dataclasses.replace(order, output=tmp_path / "again", sample_every=0)

    def interrupt(message):
        if message.get("step") == 22:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(again, PLENTY, interrupt)
    resumed = run(dataclasses.replace(again, resume=True), PLENTY, lambda message: None)
    assert resumed["last_loss"] == whole["last_loss"]
    one, other = (
        path / "adapter/adapter_model.safetensors" for path in (order.output, again.output)
    )
    assert one.read_bytes() == other.read_bytes()
    with pytest.raises(ShapeMismatch, match="another rank"):
        run(dataclasses.replace(again, resume=True, rank=4), PLENTY, lambda message: None)


def test_what_is_learned_is_the_answer_alone():
    token_ids, labels, mask = padded([TextExample([5, 6, 7], 2), TextExample([8, 9, 10, 11], 1)])
    assert token_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert labels.tolist() == [[IGNORED, IGNORED, 7, IGNORED], [IGNORED, 9, 10, 11]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_layers_that_the_model_has_not(order):
    with pytest.raises(InvalidParameter, match="no linear layer"):
        run(dataclasses.replace(order, targets=("nothing",)), PLENTY, lambda message: None)


def test_a_model_that_transformers_does_not_know(order, tmp_path, folder):
    strange = shutil.copytree(folder, tmp_path / "strange")
    change_json(strange / "config.json", model_type="strange")
    with pytest.raises(UnsupportedFeature, match="transformers cannot load"):
        load_text_learner(in_folder(strange), order)
