"""The commands, one file each: their options and help; nothing here imports torch."""
