"""Write tiny random language models with reference log-likelihoods: OUT/gpt2, OUT/llama and OUT/llama-biased.

Usage: python make.py OUT

Each folder holds the files of a published model (config, safetensors weights, tokenizer.json) and
expected.json: for every text its tokens and the log-likelihood of each token from the second on.
Other configurations of the same weights have expectations of their own where they change them.
Run with Python 3.11, torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3, safetensors 0.8.0.
"""

import json
import sys
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 320
END = "<|endoftext|>"
LLAMA_BEGIN, LLAMA_END = "<|begin_of_text|>", "<|end_of_text|>"

SENTENCES = [
    "The baker opens the shop before the sun is up.",
    "A grey cat was sleeping on the warm stones of the wall.",
    "We walked along the river until the rain started.",
    "She wrote a long letter to her brother and never sent it.",
    "There is a small garden behind the old school.",
    "The train to the north leaves at ten past seven.",
    "He counted the coins twice and put them back in the box.",
    "In winter the lake is frozen and the children skate on it.",
    "Nobody knew who had left the basket of apples at the door.",
    "The teacher asked a question, and the whole class went quiet.",
    "My grandmother keeps her recipes in a blue notebook.",
    "After dinner they played cards and listened to the radio.",
    "The bridge was closed because of the strong wind.",
    "Please bring the chairs inside before it gets dark.",
    "A farmer sold three sheep and bought a new plough.",
    "The water in the well is cold, even in the summer.",
    "I have read this book twice, but I forget how it ends.",
    "The carpenter measured the table and cut the last board.",
    "Some of the birds return to the same nest every spring.",
    "When the bell rang, everyone hurried down the stairs.",
    "The doctor told him to rest and to drink more water.",
    "It took them an hour to find the path through the forest.",
    "Her first painting is still hanging in the kitchen.",
    "The ship was carrying timber, salt and a single passenger.",
    "They are building a new road between the two villages.",
    "The clock in the tower has been wrong for years.",
    "If the weather is good, we will climb the hill tomorrow.",
    "The dog barked at the postman, as it did every morning.",
    "You can see the whole valley from the top of the tower.",
    "At night the street is empty and the lamps are lit.",
]

TEXTS = [
    "",
    "A",
    "Hi",
    "The cat is warm.",
    "We will bring the old table inside before winter.",
    "Nobody asked the farmer why 3 sheep were on the bridge at 7:45.",
    "  Two  spaces,\tthen a tab; it's \"quoted\" too.",
    "The café is très petit, naïve 😀 日本.",
    "First line\nsecond line\n\n  third line\r\n",
    f"The end of one.{END}The start of the next.",
    " ".join(SENTENCES[:8]),
]


def train_tokenizer(special_tokens):
    """A byte-level BPE as GPT-2's, with the special tokens last in the vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(special_tokens)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def randomise(model):
    """Redraw all parameters, wide enough that predictions are far from uniform."""
    torch.manual_seed(20240607)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(0.3 * noise)


def log_likelihoods(model, tokens):
    if len(tokens) < 2:
        return []
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1]
    chosen = torch.log_softmax(logits.double(), dim=-1)[range(len(tokens) - 1), tokens[1:]]
    return [float(f"{value:.9g}") for value in chosen.tolist()]


def write_expected(folder, model_class, tokenizer, max_length, config=None, name="expected.json"):
    """Compute the expected values from the saved files, read back as float32."""
    settings = {} if config is None else {"config": config}
    model = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **settings
    ).eval()
    encodings = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [len(ids) for ids in encodings[:3]] == [0, 1, 2] and len(encodings[-1]) > max_length
    texts = []
    for text, ids in zip(TEXTS, encodings):
        tokens = ids[:max_length]
        texts.append({"text": text, "tokens": tokens, "log_likelihoods": log_likelihoods(model, tokens)})
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__}
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in texts)
    head = f'{{"made_with": {json.dumps(made_with)}, "max_length": {max_length}, "texts": [\n'
    (folder / name).write_text(f"{head}{lines}\n]}}\n", encoding="utf-8")


def make_gpt2(folder):
    tokenizer = train_tokenizer([END])
    end = tokenizer.token_to_id(END)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=48, n_embd=32, n_layer=3, n_head=4,
        activation_function="gelu_new", tie_word_embeddings=True, bos_token_id=end, eos_token_id=end,
    )
    model = GPT2LMHeadModel(config)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_expected(folder, GPT2LMHeadModel, tokenizer, max_length=48)

    # Scores that are divided by the number of the layer.
    config.scale_attn_by_inverse_layer_idx = True
    saved = json.loads((folder / "config.json").read_text())
    saved["scale_attn_by_inverse_layer_idx"] = True
    (folder / "config-scaled.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    write_expected(folder, GPT2LMHeadModel, tokenizer, 48, config, "expected-scaled.json")


def make_llama(folder):
    tokenizer = train_tokenizer([LLAMA_BEGIN, LLAMA_END])
    begin, end = tokenizer.token_to_id(LLAMA_BEGIN), tokenizer.token_to_id(LLAMA_END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{LLAMA_BEGIN} $A", pair=f"{LLAMA_BEGIN} $A {LLAMA_BEGIN}:1 $B:1",
        special_tokens=[(LLAMA_BEGIN, begin)],
    )
    rope_theta = 1000.0
    rope_scaling = {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64, "rope_type": "llama3",
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=80, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
        rms_norm_eps=1e-5, rope_parameters={"rope_theta": rope_theta, **rope_scaling},
        tie_word_embeddings=False, bos_token_id=begin, eos_token_id=end,
    )
    model = LlamaForCausalLM(config)
    randomise(model)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    (folder / "generation_config.json").unlink()
    assert len(list(folder.glob("*.safetensors"))) == 2

    # The same configuration in the older published form.
    classic = json.loads((folder / "config.json").read_text())
    del classic["rope_parameters"]
    classic.update(rope_scaling=rope_scaling, rope_theta=rope_theta)
    (folder / "config-classic.json").write_text(json.dumps(classic, indent=2, sort_keys=True) + "\n")

    tokenizer.save(str(folder / "tokenizer.json"))
    write_expected(folder, LlamaForCausalLM, tokenizer, max_length=128)


def make_biased_llama(folder):
    """Biases, tied matrices, a head of keys for each of queries, and positions that are stretched evenly."""
    tokenizer = train_tokenizer([LLAMA_BEGIN, LLAMA_END])
    begin, end = tokenizer.token_to_id(LLAMA_BEGIN), tokenizer.token_to_id(LLAMA_END)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, attention_bias=True, mlp_bias=True,
        rope_parameters={"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0},
        tie_word_embeddings=True, bos_token_id=begin, eos_token_id=end,
    )
    model = LlamaForCausalLM(config)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()

    # Older versions wrote the type of the stretching twice.
    saved = json.loads((folder / "config.json").read_text())
    saved["rope_scaling"] = {"factor": 2.0, "rope_type": "linear", "type": "linear"}
    saved["rope_theta"] = saved.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")

    tokenizer.save(str(folder / "tokenizer.json"))
    write_expected(folder, LlamaForCausalLM, tokenizer, max_length=128)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    make_gpt2(out / "gpt2")
    make_llama(out / "llama")
    make_biased_llama(out / "llama-biased")
