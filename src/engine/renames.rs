//! Names of endpoints' interfaces in a namespace that several of them share: where names pass from one to another, each is given
//! only when it is free.

use super::{device::outer_name, key::LinkId, plan::Plan};
use crate::model::EndpointId;

impl Plan<'_> {
    /// The name to give to an endpoint's interface now, on its way to the one that it should have: that one, unless another of the
    /// namespace's endpoints is still to leave it. `None` is to wait for that. Where each waits for the next in a circle, the
    /// first takes a name for the time between, which is that of its other end.
    pub(super) fn name_for_now(&self, endpoint: &EndpointId, name: &str) -> Option<String> {
        let path = self.locals.by_id.get(endpoint).and_then(|local| local.spec.netns.path());
        let here = || path.and_then(|path| self.locals.by_path.get(path)).into_iter().flatten();
        let mut wanted = name;
        let mut first = endpoint;
        for at in 0..=here().count() {
            let holds = |id: &&EndpointId| {
                self.tables.links.observed_of(&LinkId::Inner((*id).clone())).is_some_and(|link| link.name == wanted)
            };
            let Some(holder) = here().find(holds) else { return (at == 0).then(|| name.to_owned()) };
            if holder == endpoint {
                return (first == endpoint).then(|| outer_name(endpoint));
            }
            first = first.min(holder);
            match self.tables.links.desired_of(&LinkId::Inner(holder.clone())) {
                Some(next) if next.name != wanted => wanted = &next.name,
                // It stays, or is not ours to move: the kernel will say so.
                _ => return Some(name.to_owned()),
            }
        }
        Some(name.to_owned())
    }
}
