import { preferenceNames, type Preference } from "../../router/core/placement/estimate.ts";
import { isPolicyName, policyNames, type PolicyName } from "../../router/core/placement/policy.ts";
import { MeshError } from "../../shared/core/errors.ts";

/** An `invalid_request` that names the flag. */
export function refuseFlag(field: string, problem: string): MeshError {
  return new MeshError("invalid_request", `--${field}: ${problem}`, { field });
}

/** What a number may be. */
export interface NumberRange {
  readonly min: number;
  readonly below: number;
  readonly fallback: number;
}

/** Reads a number; the fallback when there is no text. Throws `invalid_request`. */
export function numberFlag(text: string | undefined, field: string, range: NumberRange): number {
  if (text === undefined) return range.fallback;
  const value = Number(text);
  if (text.trim() === "" || !(value >= range.min && value < range.below)) {
    throw refuseFlag(field, `${text} is not a number from ${range.min} to below ${range.below}`);
  }
  return value;
}

/** Reads a whole number; what is past the point is cut. Throws `invalid_request`. */
export function wholeFlag(text: string | undefined, field: string, range: NumberRange): number {
  return Math.floor(numberFlag(text, field, range));
}

/** Reads a preference of our own cost. Throws `invalid_request`. */
export function preferenceFlag(text: string): Preference {
  const known = preferenceNames.find((name) => name === text);
  if (known === undefined) {
    throw refuseFlag("preference", `${text} is none of ${preferenceNames.join(", ")}`);
  }
  return known;
}

/** Baselines first, ours last. */
const allPolicies: readonly PolicyName[] = [
  ...policyNames.filter((name) => name !== "kv" && name !== "kv-blind"),
  "kv-blind",
  "kv",
];

/** Reads a list of policies, or `all`. Throws `invalid_request`. */
export function policiesFlag(text: string): readonly PolicyName[] {
  if (text === "all") return allPolicies;
  return [...new Set(text.split(","))].map((name) => {
    if (!isPolicyName(name)) {
      throw refuseFlag("policy", `${name} is none of ${policyNames.join(", ")}, all`);
    }
    return name;
  });
}
