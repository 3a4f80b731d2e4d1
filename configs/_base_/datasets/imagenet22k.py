# ImageNet-22K, or a part of it, in ImageNet's layout. It has no validation images of its own: val/ are some held out.
_base_ = ["imagenet.py"]
train_dataloader = dict(dataset=dict(root="data/imagenet22k"))
val_dataloader = dict(dataset=dict(root="data/imagenet22k"))
test_dataloader = val_dataloader
