# Mask R-CNN with VAN-B0 on the scenes of digits; `vertebra benchmark demos` says what it reaches.
#   vertebra make_dataset digits data/digits && vertebra train demo/mask-rcnn_digits
_base_ = [
    "../_base_/models/mask-rcnn.py",
    "../_base_/datasets/digits_coco_masks.py",
    "../_base_/runtime/detection.py",
    "../_base_/schedules/digits_dense.py",
]
_levels = dict(out_channels=64, featmap_strides=[4, 8, 16, 32], finest_scale=28)
model = dict(
    backbone=dict(model_name="van_b0", pretrained=False),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64, num_outs=4, norm_cfg=dict(type="GN", num_groups=8)),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            _delete_=True,
            type="AnchorGenerator",
            base_sizes=[14, 24, 38, 56],
            scales=[1.0],
            ratios=[1.0, 1.6, 2.5],
            strides=[4, 8, 16, 32],
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=_levels,
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=_levels,
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100), rcnn=dict(max_per_img=30)),
)
train_cfg = dict(max_epochs=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=1, save_best="coco/segm_mAP", rule="greater"))
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.005, update_buffers=True)]
