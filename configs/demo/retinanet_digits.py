# RetinaNet with VAN-B0 on the scenes of digits; `vertebra benchmark demos` says what it reaches.
#   vertebra make_dataset digits data/digits && vertebra train demo/retinanet_digits
_base_ = [
    "../_base_/models/retinanet.py",
    "../_base_/datasets/digits_coco.py",
    "../_base_/runtime/detection.py",
    "../_base_/schedules/digits_dense.py",
]
model = dict(
    backbone=dict(model_name="van_b0", pretrained=False),
    neck=dict(in_channels=[64, 160, 256], out_channels=64, num_outs=3, norm_cfg=dict(type="GN", num_groups=8)),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        norm_cfg=dict(type="GN", num_groups=8),
        anchor_generator=dict(
            _delete_=True,
            type="AnchorGenerator",
            base_sizes=[14, 26, 48],
            scales=[1.0, 1.26, 1.59],
            ratios=[1.0, 1.6, 2.5],
            strides=[8, 16, 32],
        ),
        reg_decoded_bbox=True,
        loss_bbox=dict(_delete_=True, type="GIoULoss", loss_weight=2.0),
    ),
)
default_hooks = dict(checkpoint=dict(interval=1, save_best="coco/bbox_mAP", rule="greater"))
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.005, update_buffers=True)]
