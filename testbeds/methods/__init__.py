"""Rival methods: ``rounders``, one file each, quantize given weights."""
