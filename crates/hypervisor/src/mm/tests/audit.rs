//! The audit of the machine, for tests of the memory manager alone.

use std::collections::HashMap;

use ring3_machine::Mfn;

use super::super::Held;
use super::World;

/// Panics unless every count of the frame table is explained by an allocation, a pin, an entry or `held`: further references of
/// both kinds, by frame.
pub fn audit(world: &World, held: &HashMap<Mfn, u64>) {
    let mut all = Held::default();
    for (&mfn, &nr) in held {
        (0..nr).for_each(|_| all.typed(mfn));
    }
    assert_eq!(world.table.audit(all), Vec::<String>::new());
}
