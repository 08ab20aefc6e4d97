//! Which type each tensor gets when all of them share a budget of bytes: a multiple-choice knapsack. The steps of each
//! tensor's convex hull are taken in order of loss saved per byte (the Lagrangian relaxation, Sinha and Zoltners 1979),
//! then single changes and exchanges of two use up what is left. It knows bytes and losses, not types.

/// One way to store a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub bytes: u64,
    /// Expected loss; what counts is the sum over all tensors.
    pub loss: f64,
}

/// The index of the choice taken for every item: the sum of losses is small, that of bytes at most `budget`. The result
/// depends on the order of nothing but the items themselves. `None` when even the smallest choices do not fit, or an
/// item has none.
pub fn allocate(items: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = items.iter().map(|choices| hull(choices)).collect();
    let mut taken: Vec<usize> = hulls.iter().map(|hull| hull.first().copied()).collect::<Option<_>>()?;
    let mut spent: u64 = items.iter().zip(&taken).map(|(choices, t)| choices[*t].bytes).sum();
    if spent > budget {
        return None;
    }
    // Hulls are convex, so each item's own steps come in the right order.
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (item, hull) in hulls.iter().enumerate() {
        for (step, pair) in hull.windows(2).enumerate() {
            let (from, to) = (items[item][pair[0]], items[item][pair[1]]);
            steps.push(((from.loss - to.loss) / (to.bytes - from.bytes) as f64, item, step + 1));
        }
    }
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let mut stuck = vec![false; items.len()];
    for (_, item, step) in steps {
        let to = hulls[item][step];
        let more = items[item][to].bytes - items[item][taken[item]].bytes;
        // A step that does not fit closes its item: later ones lie beyond it.
        if stuck[item] || spent + more > budget {
            stuck[item] = true;
            continue;
        }
        spent += more;
        taken[item] = to;
    }
    while improve(items, &mut taken, &mut spent, budget) {}
    Some(taken)
}

/// The lower convex hull of loss over bytes, by rising bytes and falling loss. Of equal choices the first.
fn hull(choices: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).filter(|i| choices[*i].loss.is_finite()).collect();
    order.sort_by(|a, b| {
        let (x, y) = (choices[*a], choices[*b]);
        x.bytes.cmp(&y.bytes).then(x.loss.total_cmp(&y.loss)).then(a.cmp(b))
    });
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        let c = choices[next];
        if hull.last().is_some_and(|last| c.loss >= choices[*last].loss) {
            continue;
        }
        while let [.., a, b] = hull[..] {
            let (a, b) = (choices[a], choices[b]);
            let slope = |from: Choice, to: Choice| (from.loss - to.loss) / (to.bytes - from.bytes) as f64;
            if slope(a, b) > slope(b, c) {
                break;
            }
            hull.pop();
        }
        hull.push(next);
    }
    hull
}

/// Makes the best single change, or else the best change of two items at once, that lowers the loss and fits.
fn improve(items: &[Vec<Choice>], taken: &mut [usize], spent: &mut u64, budget: u64) -> bool {
    // Every change of one item: (bytes more, loss saved, item, choice).
    let mut changes: Vec<(i64, f64, usize, usize)> = Vec::new();
    for (item, choices) in items.iter().enumerate() {
        let now = choices[taken[item]];
        for (i, c) in choices.iter().enumerate().filter(|(i, c)| *i != taken[item] && c.loss.is_finite()) {
            changes.push((c.bytes as i64 - now.bytes as i64, now.loss - c.loss, item, i));
        }
    }
    let room = (budget - *spent) as i64;
    // The loss saved, and the one or two changes with the bytes they need.
    let (mut best, mut change, mut need) = (1e-12, Vec::new(), 0);
    let mut offer = |saved: f64, changes: Vec<(usize, usize)>, more: i64| {
        if saved > best {
            (best, change, need) = (saved, changes, more);
        }
    };
    for &(more, saved, item, choice) in changes.iter().filter(|c| c.0 <= room) {
        offer(saved, vec![(item, choice)], more);
    }
    // What frees bytes, smallest loss first, against what needs more than there are.
    let mut frees: Vec<_> = changes.iter().filter(|c| c.0 < 0 && c.1 <= 0.0).collect();
    frees.sort_by(|a, b| b.1.total_cmp(&a.1).then((a.2, a.3).cmp(&(b.2, b.3))));
    for &(more, saved, item, choice) in changes.iter().filter(|c| c.0 > room && c.1 > 0.0) {
        let fits = frees.iter().take_while(|f| f.1 + saved > 0.0).find(|f| f.2 != item && f.0 + more <= room);
        if let Some(free) = fits {
            offer(saved + free.1, vec![(item, choice), (free.2, free.3)], more + free.0);
        }
    }
    for (item, choice) in &change {
        taken[*item] = *choice;
    }
    *spent = spent.wrapping_add_signed(need);
    !change.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u64) -> Vec<Vec<Choice>> {
        let mut s = seed;
        let mut next = move || {
            s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (s >> 33) as f64 / (1u64 << 31) as f64
        };
        let item = |scale: f64, next: &mut dyn FnMut() -> f64| {
            let noise: Vec<f64> = (0..5).map(|_| 0.7 + 0.6 * next()).collect();
            (2..7usize)
                .map(|bits| Choice {
                    bytes: (bits as f64 * 100.0 * scale) as u64 + (next() * 20.0) as u64,
                    loss: scale * noise[bits - 2] * 4f64.powi(-(bits as i32)),
                })
                .collect()
        };
        (0..n).map(|_| item(0.2 + next() * 3.0, &mut next)).collect()
    }

    fn total(items: &[Vec<Choice>], taken: &[usize]) -> (u64, f64) {
        let chosen = items.iter().zip(taken).map(|(c, t)| c[*t]);
        chosen.fold((0, 0.0), |sum, c| (sum.0 + c.bytes, sum.1 + c.loss))
    }

    /// The best of all combinations.
    fn exhaustive(items: &[Vec<Choice>], budget: u64) -> f64 {
        let n: usize = items.iter().map(Vec::len).product();
        let losses = (0..n).filter_map(|mut code| {
            let taken: Vec<usize> = items
                .iter()
                .map(|c| {
                    let t = code % c.len();
                    code /= c.len();
                    t
                })
                .collect();
            let (bytes, loss) = total(items, &taken);
            (bytes <= budget).then_some(loss)
        });
        losses.fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn it_stays_in_the_budget_and_close_to_the_best() {
        let (mut sum, mut best, mut optimal) = (0.0, 0.0, 0);
        for seed in 0..40 {
            let items = random(6, seed);
            let least: u64 = items.iter().map(|c| c.iter().map(|c| c.bytes).min().unwrap()).sum();
            let budget = least + least * (seed % 9) / 6;
            let (bytes, loss) = total(&items, &allocate(&items, budget).unwrap());
            let exact = exhaustive(&items, budget);
            assert!(bytes <= budget);
            optimal += usize::from(loss <= exact * (1.0 + 1e-9));
            sum += loss;
            best += exact;
        }
        assert!(optimal >= 30, "optimal in {optimal} of 40");
        assert!(sum <= best * 1.01, "{sum} against {best} over all");
    }

    #[test]
    fn more_bytes_never_hurt_much_and_enough_give_the_best_of_all() {
        let items = random(60, 7);
        let all: u64 = items.iter().map(|c| c.iter().map(|c| c.bytes).max().unwrap()).sum();
        let taken = allocate(&items, all).unwrap();
        let least: f64 = items.iter().map(|c| c.iter().map(|c| c.loss).fold(f64::INFINITY, f64::min)).sum();
        assert_eq!(total(&items, &taken).1, least);
    }

    #[test]
    fn too_small_a_budget_or_an_item_without_choices_has_no_answer() {
        let items = random(3, 1);
        assert_eq!(allocate(&items, 10), None);
        assert_eq!(allocate(&[vec![]], 10), None);
        let unusable = Choice { bytes: 1, loss: f64::NAN };
        assert_eq!(allocate(&[vec![unusable]], 10), None);
        assert_eq!(allocate(&[], 0), Some(vec![]));
    }
}
