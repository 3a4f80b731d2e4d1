# A timm classifier with the regularisation that most recipes share, DeiT's: label smoothing, mixup or cutmix, erasing.
_base_ = ["classifier.py"]
model = dict(
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5),
    erasing=dict(probability=0.25, mode="pixel"),
)
