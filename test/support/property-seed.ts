import fc from "fast-check";

/**
 * Property tests try the same cases every time, so that a red run means a change and not the day's luck.
 * `KVMESH_PROPERTY_SEED=random` tries new ones, and a number repeats a run whose failure printed it.
 */
const seedOfEveryRun = 20_260_117;
const asked = process.env["KVMESH_PROPERTY_SEED"] ?? "";

if (asked !== "random") {
  const seed = asked === "" ? seedOfEveryRun : Number(asked);
  if (!Number.isInteger(seed)) {
    throw new Error(`KVMESH_PROPERTY_SEED must be a whole number or "random", got "${asked}"`);
  }
  fc.configureGlobal({ ...fc.readConfigureGlobal(), seed });
}
