"""A dataset of walking figures in Market-1501's layout, drawn where no data is at hand.

A person is a body, a gait, clothes with their cut and pattern, hair and a bag (`person`); a
camera is a direction of view, light, colour cast, blur, noise and a street (`camera`, `scene`).
Every picture draws a phase of the gait, the place in the box, passers-by and things in the way.
People come in families of equal colours, and the same colours look different under each camera,
so colours alone do not find a person.

In percent (mAP step, Market-1501's rule) on 60 train and 40 test identities, 4 cameras, 4 images
a camera, 40 distractors, 128x64, seed 0:

| ranked by | mAP | R1 |
| --- | --- | --- |
| joint RGB histogram, 8 bins a channel | 1.8 | 0.0 |
| HSV histograms in 6 stripes, the middle weighed most | 3.4 | 1.9 |
| the same after the mean colour is made grey | 22.7 | 31.9 |
| ResNet-10-t (timm `resnet10t`) trained from random weights | 66.8 | 74.4 |

The histograms are those of `benchmarks/drawn_baseline.py`. The network had 400 steps of 16
identities x 4 images (27 epochs): cross entropy with label smoothing 0.1 after a batch-norm neck
plus batch-hard soft-margin triplet loss, AdamW at 0.002 on a one-cycle schedule, random crop,
flip and colour gain, on the pictures before their JPEG coding. Over seeds 0 to 4 the mAP of the
three histograms is 1.8 to 4.4, 3.4 to 14.0 and 18.7 to 31.9.

A picture is a pure function of (config, identity, camera, index): the same bytes in any order and
any process, under the same versions of Pillow, NumPy and the C library. One core draws and
encodes about 500 a second at 128x64.
"""

from pipelines.datasets.drawn.config import DrawnConfig, plan
from pipelines.datasets.drawn.writer import draw_dataset, draw_image, encode_image

__all__ = ["DrawnConfig", "draw_dataset", "draw_image", "encode_image", "plan"]
