# 30 epochs of AdamW at 5e-5 for a total batch of 512, almost without decay and without warm-up, along a cosine to 1e-6.
_base_ = ["imagenet_300e.py"]
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=1e-8))
auto_scale_lr = dict(base_batch_size=512)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=1e-6, convert_to_iter_based=True)]
