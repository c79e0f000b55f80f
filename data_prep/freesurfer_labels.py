"""Names of brain structures: FreeSurfer's for aseg values, and the 27 that whole-brain networks are compared on."""

from __future__ import annotations

# FreeSurferColorLUT.txt. Where two values of the table mean one structure, both are named; the first is written back.
ASEG: dict[str, tuple[int, ...]] = {
    "Left-Cerebral-White-Matter": (2,),
    "Left-Cerebral-Cortex": (3,),
    "Left-Lateral-Ventricle": (4,),
    "Left-Inf-Lat-Vent": (5,),
    "Left-Cerebellum-White-Matter": (7,),
    "Left-Cerebellum-Cortex": (8,),
    "Left-Thalamus": (10, 9),  # 9 until version 4
    "Left-Caudate": (11,),
    "Left-Putamen": (12,),
    "Left-Pallidum": (13,),
    "3rd-Ventricle": (14,),
    "4th-Ventricle": (15,),
    "Brain-Stem": (16,),
    "Left-Hippocampus": (17,),
    "Left-Amygdala": (18,),
    "CSF": (24,),
    "Left-Accumbens-area": (26,),
    "Left-VentralDC": (28,),
    "Left-vessel": (30,),
    "Left-choroid-plexus": (31,),
    "Right-Cerebral-White-Matter": (41,),
    "Right-Cerebral-Cortex": (42,),
    "Right-Lateral-Ventricle": (43,),
    "Right-Inf-Lat-Vent": (44,),
    "Right-Cerebellum-White-Matter": (46,),
    "Right-Cerebellum-Cortex": (47,),
    "Right-Thalamus": (49, 48),
    "Right-Caudate": (50,),
    "Right-Putamen": (51,),
    "Right-Pallidum": (52,),
    "Right-Hippocampus": (53,),
    "Right-Amygdala": (54,),
    "Right-Accumbens-area": (58,),
    "Right-VentralDC": (60,),
    "Right-vessel": (62,),
    "Right-choroid-plexus": (63,),
    "5th-Ventricle": (72,),
    "WM-hypointensities": (77, 78, 79),  # 78 and 79 are those of the left and of the right
    "non-WM-hypointensities": (80, 81, 82),
    "Optic-Chiasm": (85,),
    "CC_Posterior": (251,),
    "CC_Mid_Posterior": (252,),
    "CC_Central": (253,),
    "CC_Mid_Anterior": (254,),
    "CC_Anterior": (255,),
}

# Parcels of the cortex in aparc+aseg (Desikan-Killiany, also its DKT form): "ctx-lh-…" and "ctx-rh-…".
LEFT_PARCELS = range(1000, 1036)
RIGHT_PARCELS = range(2000, 2036)

# The structures of QuickNAT (https://arxiv.org/abs/1801.04161) and of scSE's whole-brain experiments
# (https://arxiv.org/abs/1808.08127), in their order: 28 classes with the background.
WHOLE_BRAIN_27 = (
    "Left-Cerebral-White-Matter",
    "Left-Cerebral-Cortex",
    "Right-Cerebral-White-Matter",
    "Right-Cerebral-Cortex",
    "Left-Lateral-Ventricle",
    "Left-Cerebellum-White-Matter",
    "Left-Cerebellum-Cortex",
    "Left-Thalamus",
    "Left-Caudate",
    "Left-Putamen",
    "Left-Pallidum",
    "3rd-Ventricle",
    "4th-Ventricle",
    "Brain-Stem",
    "Left-Hippocampus",
    "Left-Amygdala",
    "Left-VentralDC",
    "Right-Lateral-Ventricle",
    "Right-Cerebellum-White-Matter",
    "Right-Cerebellum-Cortex",
    "Right-Thalamus",
    "Right-Caudate",
    "Right-Putamen",
    "Right-Pallidum",
    "Right-Hippocampus",
    "Right-Amygdala",
    "Right-VentralDC",
)
