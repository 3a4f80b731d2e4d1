# The digits of `vertebra make_dataset digits data/digits`, at 64 x 64.
train_dataloader = dict(
    dataset=dict(
        type="TimmDataset",
        root="data/digits/imagenet",
        split="train",
        training=True,
        transform=dict(
            input_size=(3, 64, 64), scale=(0.6, 1.0), ratio=(0.8, 1.25), hflip=0.0, auto_augment=None, color_jitter=0.3
        ),
    ),
    batch_size=48,
    num_workers=2,
)
val_dataloader = dict(
    dataset=dict(
        type="TimmDataset",
        root="data/digits/imagenet",
        split="val",
        transform=dict(input_size=(3, 64, 64), crop_pct=1.0),
    ),
    batch_size=120,
    num_workers=2,
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopK")
test_evaluator = val_evaluator
