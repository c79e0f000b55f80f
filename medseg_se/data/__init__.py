"""From files to patches: datalists, checking, preprocessing, the case store, sampling, augmentation and phantoms."""
