import { describe, expect, test } from "vitest";
import { formatCount, formatMs, formatRatio, textTable } from "./text-table.ts";

describe("textTable", () => {
  test("aligns columns and leaves no trailing blanks", () => {
    const lines = textTable(
      [{ title: "worker" }, { title: "cost", align: "right" }, { title: "note" }],
      [
        ["w0", "7", ""],
        ["worker-1", "1,234", "far"],
      ],
    );
    expect(lines).toEqual(["worker     cost  note", "w0            7", "worker-1  1,234  far"]);
  });

  test("prints no heading line when no column has a title", () => {
    expect(textTable([{ title: "" }, { title: "" }], [["a", "b"]])).toEqual(["a  b"]);
  });
});

test("figures are short and name their unit", () => {
  expect(formatMs(0.5)).toBe("0.50 ms");
  expect(formatMs(40.25)).toBe("40.3 ms");
  expect(formatMs(297.4)).toBe("297 ms");
  expect(formatMs(-0.001)).toBe("0.00 ms");
  expect(formatMs(-0.5)).toBe("-0.50 ms");
  expect(formatMs(12_345)).toBe("12.3 s");
  expect(formatMs(Number.NaN)).toBe("–");
  expect(formatCount(112_500)).toBe("112,500");
  expect(formatCount(7n)).toBe("7");
  expect(formatRatio(0.834)).toBe("83.4 %");
  expect(formatRatio(Number.NaN)).toBe("–");
});
