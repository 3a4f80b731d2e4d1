# ImageNet-style folders under data/imagenet (or tar files, wds/..., hfds/...: `name`), the usual augmentation.
train_dataloader = dict(
    dataset=dict(
        type="TimmDataset",
        root="data/imagenet",
        split="train",
        training=True,
        transform=dict(auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, interpolation="random"),
    ),
    batch_size=128,
    num_workers=8,
)
val_dataloader = dict(
    dataset=dict(type="TimmDataset", root="data/imagenet", split="val"), batch_size=128, num_workers=8
)
test_dataloader = val_dataloader
val_evaluator = dict(type="TopK")
test_evaluator = val_evaluator
