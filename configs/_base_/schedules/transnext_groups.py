# TransNeXt beside a transformer head: a tenth of the rate in all of the backbone, no decay of its norms, biases and
# what scales or biases attention. The longest key that is part of a name counts: each is longer than "backbone". (The
# authors' list leaves out the last stage's patch embedding and norm, which so train at the full rate.)
backbone_groups = {
    key: dict(lr_mult=0.1, decay_mult=0.0)
    for key in (
        *("attn.query_embedding", "attn.relative_pos_bias_local", "attn.temperature", "attn.cpb.", "attn.norm"),
        *(f"attn.{layer}.bias" for layer in ("q", "kv", "qkv", "sr", "proj")),
        *(f"mlp.{layer}.bias" for layer in ("fc1", "fc2", "dwconv")),
        *("downsample.conv.bias", "downsample.norm"),
        *(f"stages.{stage}.norm" for stage in range(4)),
        *(f"blocks.{block}.norm" for block in range(23)),
    )
}
