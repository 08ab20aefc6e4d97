//! What of a recipe decides the bytes of one of its outputs.

use super::recipe::{Recipe, RuleType, Search, Target, TypeRule, TypeRules};
use super::rounding::{Rounding, has_feedback, needs_data, rounds_by_data, smoothing, tuning};
use crate::calibration::imatrix::UnseenExperts;
use crate::model::{Mtp, Part};

impl Recipe {
    /// What of the recipe decides the bytes of one of its outputs: two runs that make it, with whatever else, have this
    /// in common. It is what the output records.
    pub fn of_output(&self, output: usize) -> Recipe {
        // Every field is named, so that a new one asks for a decision here.
        let Recipe {
            outputs,
            part,
            mtp,
            types,
            metadata,
            pretokenizer,
            requantize,
            importance,
            unseen_experts,
            data,
            rounding,
            split,
            devices,
            hash_sources,
        } = self.clone();
        let target = outputs[output].clone();
        let (alone, usual) = (vec![target.clone()], Rounding::default());
        match &target {
            Target::Plain { .. } => Recipe {
                outputs: alone,
                part: Part::Text,
                mtp: Mtp::Keep,
                types: TypeRules::default(),
                metadata: Vec::new(),
                pretokenizer: None,
                requantize: false,
                importance: None,
                unseen_experts: UnseenExperts::default(),
                data: None,
                rounding: Rounding::default(),
                split,
                devices: 1,
                hash_sources,
            },
            Target::Folder { format, limit, .. } => {
                let given = self.data.is_some();
                let feedback = has_feedback(format, &rounding, given);
                let calibrated = needs_data(format, &rounding, given);
                let data = (calibrated || limit.is_some()).then(|| data.unwrap_or_default());
                let smooth = smoothing(format, &rounding);
                let rounding = Rounding {
                    search: Some(if feedback { Search::Feedback } else { Search::Nearest }),
                    rho: if feedback { rounding.rho } else { usual.rho },
                    damping: if feedback { rounding.damping } else { usual.damping },
                    sequential: rounds_by_data(format, &rounding, given).then(|| rounding.sequential.unwrap_or(true)),
                    static_groups: rounding.static_groups && feedback && format.desc_act,
                    smooth: smooth.filter(|_| given).unwrap_or(usual.smooth),
                    sort_channels: false,
                    tune: tuning(format, &rounding, given),
                };
                let tensors = types.tensors.into_iter().filter(|rule| rule.ty.folder.is_some());
                // The same rules, whatever else they might mean.
                let tensors = tensors.map(|rule| TypeRule { ty: RuleType { file: None, ..rule.ty }, ..rule }).collect();
                Recipe {
                    outputs: alone,
                    part: Part::Text,
                    mtp: Mtp::Keep,
                    types: TypeRules { tensors, output: None, embedding: None, keep_output: false, pure: false },
                    metadata: Vec::new(),
                    pretokenizer: None,
                    requantize: false,
                    importance: None,
                    unseen_experts: UnseenExperts::default(),
                    data,
                    rounding,
                    split,
                    devices,
                    hash_sources,
                }
            }
            _ => {
                let mut types = types;
                types.tensors.retain(|rule| rule.ty.file.is_some());
                let rounding = match self.file_feedback() {
                    true => Rounding {
                        search: Some(Search::Feedback),
                        rho: rounding.rho,
                        damping: rounding.damping,
                        sequential: Some(self.sequential_files()),
                        sort_channels: rounding.sort_channels,
                        static_groups: false,
                        smooth: usual.smooth,
                        tune: 0,
                    },
                    false => Rounding {
                        search: Some(Search::Nearest),
                        rho: usual.rho,
                        damping: usual.damping,
                        sequential: None,
                        sort_channels: false,
                        static_groups: false,
                        smooth: usual.smooth,
                        tune: 0,
                    },
                };
                Recipe {
                    outputs: alone,
                    part,
                    mtp,
                    types,
                    metadata,
                    pretokenizer,
                    requantize,
                    importance,
                    unseen_experts,
                    data,
                    rounding,
                    split,
                    devices: 1,
                    hash_sources,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::recipe::Limit;
    use crate::convert::recipe::tests::full;

    #[test]
    fn a_folder_with_a_budget_records_what_it_was_spent_by() {
        let target = |limit| {
            let Target::Folder { name, format, .. } = Target::parse("mlx-4bit").unwrap() else { panic!("no folder") };
            Target::Folder { name, format, limit }
        };
        let rounding = Rounding { search: Some(Search::Nearest), ..Rounding::default() };
        let recipe = |limit| Recipe { outputs: vec![target(limit)], rounding: rounding.clone(), ..full() };
        let with = recipe(Some(Limit::Bytes(1000))).of_output(0);
        assert!(with.data == full().data && with.outputs[0].limit() == Some(Limit::Bytes(1000)));
        assert_eq!(with.rounding.sequential, None);
        assert!(recipe(None).of_output(0).data.is_none());
    }

    #[test]
    fn an_output_records_what_decides_its_bytes() {
        let (all, alone) = (full(), Recipe { outputs: vec![full().outputs[0].clone()], ..full() });
        assert_eq!(all.of_output(0), alone.of_output(0));
        assert!(all.of_output(2).data.is_none(), "fp8 is not calibrated");
        assert!(all.of_output(1).data.is_some() && all.of_output(1).types == TypeRules::default());
        let plain = Recipe { data: None, ..alone };
        let other = Recipe { rounding: Rounding { rho: 0.9, ..Rounding::default() }, ..plain.clone() };
        assert_eq!(plain.of_output(0), other.of_output(0), "without feedback there is no rho");
    }
}
