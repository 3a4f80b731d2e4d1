# As adamw_300e, with a lowest rate that is a number. The rate follows the total batch linearly: twice the images a
# step, twice the rate.
_base_ = ["adamw_300e.py"]
auto_scale_lr = dict(enable=True, base_batch_size=1024)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min=1e-5, convert_to_iter_based=True),
]
