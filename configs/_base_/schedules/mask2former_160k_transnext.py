# Mask2Former's 160 000 iterations as TransNeXt's authors train it; see transnext_groups.py.
_base_ = ["mask2former_160k.py", "transnext_groups.py"]
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={{_base_.backbone_groups}}, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
