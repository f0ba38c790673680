"""The command line, `lvd-juice`: click commands over the library; installs as `pyjuice_lvd.cli`."""
