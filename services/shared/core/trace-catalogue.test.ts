import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import {
  attributeCatalogue,
  attributes,
  checkAgainstCatalogue,
  findSpanSpec,
  renderCatalogueTable,
  spanCatalogue,
  spanNames,
} from "./trace-catalogue.ts";

const serve = {
  [attributes.decisionId]: "r.1.1",
  [attributes.requestId]: "a",
  [attributes.serveAttempts]: 1,
  [attributes.serveAsPicked]: true,
  [attributes.httpResponseStatusCode]: 200,
};

describe("the catalogue", () => {
  test("names each attribute once, in the form of the conventions, and uses each on a span", () => {
    const names = Object.values(attributeCatalogue).map((spec) => spec.name);
    expect(new Set(names).size).toBe(names.length);
    expect(names.filter((name) => !/^[a-z]+(?:[._][a-z0-9]+)+$/u.test(name))).toEqual([]);
    const used = new Set(spanCatalogue.flatMap((spec) => [...spec.required, ...spec.optional]));
    expect(Object.keys(attributeCatalogue).filter((key) => !used.has(key as never))).toEqual([]);
    for (const { required, optional } of spanCatalogue) {
      expect(new Set([...required, ...optional]).size).toBe(required.length + optional.length);
    }
  });

  test("gives a unit to every attribute whose name ends with one", () => {
    const units = { _ms: "ms", _us: "us", tokens: "{token}", bytes: "By" };
    for (const spec of Object.values(attributeCatalogue)) {
      for (const [end, unit] of Object.entries(units)) {
        if (spec.name.endsWith(end)) expect([spec.name, spec.unit]).toEqual([spec.name, unit]);
      }
    }
  });

  test("knows every constant name and the varying ones of Envoy", () => {
    for (const name of Object.values(spanNames)) expect(findSpanSpec(name)?.name).toBe(name);
    expect(findSpanSpec("router pool-default egress")?.owner).toBe("envoy");
    expect(
      findSpanSpec("async envoy.service.ext_proc.v3.ExternalProcessor.Process egress")?.owner,
    ).toBe("envoy");
    expect(findSpanSpec("kvmesh.rout")).toBeUndefined();
  });

  test("is what the console's README shows", () => {
    const readme = readFileSync(new URL("../../console/README.md", import.meta.url), "utf8");
    const section = /<!-- trace catalogue: begin -->\n(.*)<!-- trace catalogue: end -->/su.exec(
      readme,
    );
    expect(cells(section?.[1] ?? "")).toEqual(cells(renderCatalogueTable()));
  });
});

/** The cells of all tables, without the padding that the formatter adds. */
function cells(markdown: string): string[][] {
  return markdown
    .split("\n")
    .filter((line) => line.startsWith("|") && !/^[|\s:-]+$/u.test(line))
    .map((line) => line.split(/(?<!\\)\|/u).map((cell) => cell.trim()));
}

describe("the check", () => {
  test("accepts spans that follow the catalogue, and whatever Envoy and engines add", () => {
    expect(
      checkAgainstCatalogue([
        { name: "kvmesh.serve", kind: "internal", attributes: serve },
        { name: "ingress", kind: "server", attributes: { "http.method": "POST" } },
      ]),
    ).toEqual([]);
  });

  test.each([
    [{ name: "kvmesh.sreve", attributes: {} }, /kvmesh\.sreve" is not in the catalogue/],
    [{ name: "kvmesh.serve", kind: "server", attributes: serve }, /has kind server, expected/],
    [
      { name: "kvmesh.serve", attributes: { ...serve, "kvmesh.made.up": 1 } },
      /kvmesh\.made\.up, which the catalogue does not list/,
    ],
    [
      { name: "ingress", attributes: { "kvmesh.made.up": 1 } },
      /kvmesh\.made\.up, which the catalogue does not list/,
    ],
    [
      { name: "kvmesh.serve", attributes: { ...serve, [attributes.serveAttempts]: 1.5 } },
      /attempts is not int but fractional number/,
    ],
    [
      { name: "kvmesh.serve", attributes: { ...serve, [attributes.differenceCause]: "moon" } },
      /"moon", expected one of none, evicted/,
    ],
    [
      { name: "kvmesh.route.score", attributes: { [attributes.routeFiltered]: [] } },
      /lacks kvmesh\.route\.candidates/,
    ],
    [
      {
        name: "kvmesh.route.score",
        attributes: {
          [attributes.routeFiltered]: [],
          [attributes.routeCandidates]: 1,
          [attributes.candidateTotalMs]: ["1"],
        },
      },
      /not double\[\] but an array of string/,
    ],
  ])("reports %j", (span, problem) => {
    expect(checkAgainstCatalogue([span, span])).toEqual([expect.stringMatching(problem)]);
  });
});
