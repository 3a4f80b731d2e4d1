# Semantic FPN with VAN-B0 on the scenes of digits; `vertebra benchmark demos` says what it reaches.
#   vertebra make_dataset digits data/digits && vertebra train demo/semantic-fpn_digits
_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/digits_ade20k.py",
    "../_base_/runtime/segmentation.py",
    "../_base_/schedules/digits_dense.py",
]
_norm = dict(type="GN", num_groups=8)
model = dict(
    data_preprocessor=dict(size=(128, 128), test_cfg=dict(size_divisor=32)),
    backbone=dict(model_name="van_b0", pretrained=False),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64, norm_cfg=_norm),
    decode_head=dict(
        in_channels=[64] * 4,
        channels=64,
        dropout_ratio=0.0,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=[
            dict(type="CrossEntropyLoss", loss_name="loss_ce", loss_weight=1.0),
            dict(type="DiceLoss", loss_name="loss_dice", loss_weight=1.0),
        ],
    ),
)
train_cfg = dict(max_epochs=6, val_interval=6)
log_processor = dict(by_epoch=True)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, save_best="mIoU", rule="greater"),
)
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.005, update_buffers=True)]
