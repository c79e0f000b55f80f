"""Converters from the layouts that datasets come in to the datalist layout; they import medseg_se, never the reverse."""
