//! From a checkpoint to a quantized checkpoint folder: [`plan`] decides from shapes what every tensor becomes, [`job`]
//! does what all methods share (reading modules, packing, writing, resuming), [`nearest`] rounds module by module without
//! running the model, [`layered`] by what a layer's inputs were (which [`crate::calibration::layerwise`] shows it), with
//! the channel factors of [`scaled`] where there are any, and [`files`] makes the small files around the weights;
//! [`engines`] says who would refuse the result. Formats are known to [`crate::packed`], the container to [`crate::writer`].

pub mod engines;
pub mod files;
pub mod job;
pub mod judge;
pub mod layered;
pub mod nearest;
pub mod plan;
pub mod scaled;

pub use job::{Job, Method, Written};
pub use layered::Layered;
pub use plan::{Departure, Planned, Request};
