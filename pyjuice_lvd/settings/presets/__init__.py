"""The shipped presets: TOML files of settings that differ from the defaults."""
