"""DATA (docs/data.md) as arrays, split; images, their colours, patches and masks."""
