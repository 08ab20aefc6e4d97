//! How the values of a recipe are written that are known by a name: presets, formats, types, sources of text.

use crate::calibration::data::Source;
use crate::packed::{self, Spec};
use crate::quant::GgmlType;
use crate::quant::presets::{self, Preset};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) mod preset_name {
    use super::*;

    pub fn serialize<S: Serializer>(preset: &&'static Preset, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(preset.name)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<&'static Preset, D::Error> {
        let name = String::deserialize(d)?;
        presets::find(&name).ok_or_else(|| D::Error::custom(format!("'{name}' is an unknown preset")))
    }
}

pub(super) mod spec_name {
    use super::*;

    pub fn serialize<S: Serializer>(spec: &Spec, s: S) -> Result<S::Ok, S::Error> {
        // Whether the group was asked for decides what happens where it does not fit.
        s.serialize_str(&format!("{spec}{}", if spec.group_given { "!" } else { "" }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Spec, D::Error> {
        let name = String::deserialize(d)?;
        let (plain, group_given) = name.strip_suffix('!').map_or((name.as_str(), false), |name| (name, true));
        let spec = packed::parse(plain).ok_or_else(|| D::Error::custom(format!("'{name}' is an unknown format")))?;
        Ok(Spec { group_given, ..spec })
    }
}

fn type_of<E: serde::de::Error>(name: &str) -> Result<GgmlType, E> {
    GgmlType::from_name(name).ok_or_else(|| E::custom(format!("'{name}' is an unknown tensor type")))
}

pub(super) mod type_name {
    use super::*;

    pub fn serialize<S: Serializer>(ty: &Option<GgmlType>, s: S) -> Result<S::Ok, S::Error> {
        ty.map(|ty| ty.name()).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<GgmlType>, D::Error> {
        Option::<String>::deserialize(d)?.map(|name| type_of(&name)).transpose()
    }
}

pub(super) mod source_names {
    use super::*;

    pub fn serialize<S: Serializer>(sources: &[Source], s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(sources.iter().map(ToString::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Source>, D::Error> {
        // Whoever runs the recipe fetches what is on the Hub.
        let unfetched = |_: &str| Ok(None);
        let names = Vec::<String>::deserialize(d)?;
        names.iter().map(|name| Source::parse(name, unfetched).map_err(D::Error::custom)).collect()
    }
}
