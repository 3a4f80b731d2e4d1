# DINO's 12 epochs as TransNeXt's authors train it; see transnext_groups.py.
_base_ = ["dino_12e.py", "transnext_groups.py"]
optim_wrapper = dict(
    optimizer=dict(betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={{_base_.backbone_groups}}, bias_decay_mult=0.0, norm_decay_mult=0.0, flat_decay_mult=0.0
    ),
)
