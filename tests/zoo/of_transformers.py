"""Networks of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from zoo.libraries import transformers
from zoo.networks import Network, images, noise, tokens


def small(**more: Any) -> dict[str, Any]:
    """The sizes that most configurations know by these names."""
    return {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
    } | more


def network(
    name: str, kind: str, config: str, sizes: dict[str, Any], example=None, output="logits", **options
) -> Network:
    """`kind` and `config` are names of transformers' classes."""

    def build():
        return getattr(transformers, kind)(getattr(transformers, config)(**sizes))

    def words():
        return {"input_ids": tokens()}

    return Network(name, "transformers", build, words if example is None else example, output, **options)


def pictures(size: int = 32):
    return lambda: {"pixel_values": images(size)()}


COMPUTED = "weights are computed from others in every pass"
DECODER = small(num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False)
PAIR = {"input_ids": tokens(), "decoder_input_ids": tokens(6)}
SPEECH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
}
CLIP = {
    "text_config": small(eos_token_id=49),
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "projection_dim": 16,
}

NETWORKS = [
    network("BERT", "BertForSequenceClassification", "BertConfig", small(num_labels=3)),
    network("BERT, tied head", "BertForMaskedLM", "BertConfig", small()),
    network("RoBERTa", "RobertaForSequenceClassification", "RobertaConfig", small(num_labels=3, pad_token_id=1)),
    network(
        "DistilBERT",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16},
    ),
    network("ALBERT", "AlbertForSequenceClassification", "AlbertConfig", small(embedding_size=8, num_labels=3)),
    network("ELECTRA", "ElectraForSequenceClassification", "ElectraConfig", small(embedding_size=8, num_labels=3)),
    network(
        "DeBERTa",
        "DebertaForSequenceClassification",
        "DebertaConfig",
        small(num_labels=3, relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=8),
        no_dfa="relative positions, which all samples share, pass through layers of their own",
    ),
    network(
        "DeBERTa v2",
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        small(num_labels=3, relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=8),
        no_dfa="relative positions, which all samples share, pass through layers of their own",
    ),
    network(
        "GPT-2",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "use_cache": False},
    ),
    network("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", small(use_cache=False)),
    network(
        "OPT",
        "OPTForCausalLM",
        "OPTConfig",
        {**small(), "ffn_dim": 32, "word_embed_proj_dim": 16, "use_cache": False},
        no_dfa="tokens are laid into the batch",
    ),
    network(
        "BLOOM",
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2, "use_cache": False},
    ),
    network("Llama", "LlamaForCausalLM", "LlamaConfig", DECODER),
    network("Mistral", "MistralForCausalLM", "MistralConfig", DECODER),
    network("Qwen2", "Qwen2ForCausalLM", "Qwen2Config", DECODER),
    network("Gemma", "GemmaForCausalLM", "GemmaConfig", {**DECODER, "head_dim": 8}),
    network("Phi", "PhiForCausalLM", "PhiConfig", DECODER),
    network(
        "Mixtral",
        "MixtralForCausalLM",
        "MixtralConfig",
        {**DECODER, "num_local_experts": 2},
        refused="experts' weights lie in one parameter, outside of layers",
    ),
    network(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "use_cache": False},
        lambda: PAIR,
    ),
    network(
        "BART",
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "vocab_size": 50,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 16,
            "use_cache": False,
        },
        lambda: PAIR,
    ),
    network(
        "Mamba",
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "use_cache": False},
        apart={f"backbone.layers.{number}.mixer.{layer}": "bp" for number in (0, 1) for layer in ("conv1d", "dt_proj")},
    ),
    network(
        "Whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": 50,
            "d_model": 16,
            "num_mel_bins": 8,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_source_positions": 8,
            "max_target_positions": 16,
            "use_cache": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        lambda: {"input_features": noise(2, 8, 16), "decoder_input_ids": tokens(6)},
    ),
    network(
        "Wav2Vec2",
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        SPEECH,
        lambda: {"input_values": noise(2, 400)},
        no_kp=COMPUTED,
    ),
    network("HuBERT", "HubertForCTC", "HubertConfig", SPEECH, lambda: {"input_values": noise(2, 400)}, no_kp=COMPUTED),
    network(
        "ViT",
        "ViTForImageClassification",
        "ViTConfig",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 32,
            "patch_size": 8,
        },
        pictures(),
    ),
    network(
        "Swin",
        "SwinForImageClassification",
        "SwinConfig",
        {
            "image_size": 32,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 4,
            "drop_path_rate": 0.0,
        },
        pictures(),
        no_dfa="windows are laid into the batch",
    ),
    network(
        "CLIP",
        "CLIPModel",
        "CLIPConfig",
        CLIP,
        lambda: {**pictures()(), "input_ids": tokens(batch=3)},
        "logits_per_image",
    ),
    network(
        "ConvNeXt",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
        pictures(),
    ),
    network(
        "SegFormer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 2],
            "decoder_hidden_size": 16,
            "drop_path_rate": 0.0,
        },
        pictures(64),
    ),
    network(
        "ResNet",
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        pictures(),
    ),
]
