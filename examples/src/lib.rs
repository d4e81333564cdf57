//! See the `examples` folder: one runnable file per thing you may want to do.
