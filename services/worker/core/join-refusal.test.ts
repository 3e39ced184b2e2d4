import { describe, expect, test } from "vitest";
import { refusalOfEnd } from "./join-refusal.ts";

const end = (code: number, errorCode?: string) =>
  refusalOfEnd({ code, details: "what the router says", errorCode });

describe("refusalOfEnd", () => {
  test("tells an engine address that is not allowed from a caller that is not", () => {
    const address = end(7, "permission_denied");
    expect(address?.kind).toBe("address_not_allowed");
    expect(address?.mend).toContain("workers.allowedCidrs");
    const caller = end(7);
    expect(caller?.kind).toBe("caller_not_allowed");
    expect(caller?.mend).toContain("router.callers.membership");
    expect(caller?.mend).not.toContain("allowedCidrs");
  });

  test.each([
    [3, "incompatible"],
    [6, "id_taken"],
    [10, "stale_epoch"],
    [16, "bad_proof"],
  ])("status %i is %s, with the router's words", (code, kind) => {
    expect(end(code)).toMatchObject({ kind, message: "what the router says" });
  });

  test.each([0, 1, 4, 8, 13, 14])("status %i is a fault that passes", (code) => {
    expect(end(code)).toBeUndefined();
  });
});
