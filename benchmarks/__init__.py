"""How fast ckptstore is beside everyone else: ``make bench``. README.md here says how it works."""
