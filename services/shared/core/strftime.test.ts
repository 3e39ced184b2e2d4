import { expect, test } from "vitest";
import { strftimeUtc } from "./strftime.ts";

// 2024-03-07 09:05:04 UTC, a Thursday, day 67.
const time = Date.UTC(2024, 2, 7, 9, 5, 4);

test.each([
  ["%Y-%m-%d %H:%M:%S", "2024-03-07 09:05:04"],
  ["%d %b %Y", "07 Mar 2024"],
  ["%A, %B %-d, %y", "Thursday, March 7, 24"],
  ["%a %e %j %I%p", "Thu  7 067 09AM"],
  ["100%% %Q", "100% %Q"],
])("%s as the C library writes it", (format, expected) => {
  expect(strftimeUtc(format, time)).toBe(expected);
});

test("midnight and noon on a twelve hour clock", () => {
  expect(strftimeUtc("%I %p", Date.UTC(2024, 0, 1))).toBe("12 AM");
  expect(strftimeUtc("%-I %p", Date.UTC(2024, 0, 1, 13))).toBe("1 PM");
});
