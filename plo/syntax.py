"""Syntax trees of functions and classes: finding them in files, removing text, and listing what they refer to."""

import ast
import copy
import linecache
import symtable
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import Any

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


def node_of_code(code: CodeType) -> Definition | None:
    """Return the definition that code was compiled from; None if its source is missing or has changed."""
    index = _index("".join(linecache.getlines(code.co_filename)))
    found = [node for _, node in index if _first_line(node) == code.co_firstlineno and _name(node) == code.co_name]
    if len(found) < 2:
        return found[0] if found else None
    places = [(line, column) for line, _, column, _ in code.co_positions() if line and column]
    around = [node for node in found if all(_holds(node, place) for place in places)]  # lambdas in one line
    return min(around, key=lambda node: len(ast.unparse(node)), default=None)


def node_of_class(cls: type, file: str | None) -> ast.ClassDef | None:
    """Return the definition of a class in the file of its module; None if it is not there."""
    index = _index("".join(linecache.getlines(file))) if file else []
    found = [node for name, node in index if name == cls.__qualname__ and isinstance(node, ast.ClassDef)]
    lines = [value.__code__.co_firstlineno for value in vars(cls).values() if hasattr(value, "__code__")]
    around = [node for node in found if any(node.lineno <= line <= node.end_lineno for line in lines)]
    return (around or found or [None])[-1]


@lru_cache(maxsize=4096)
def plain_text(node: ast.AST) -> str:
    """Return a definition as text, without what does not change what it computes.

    Comments, layout, docstrings, annotations, error messages and the decorator that registers the definition are left out.
    """
    return ast.unparse(ast.fix_missing_locations(_Plain().visit(copy.deepcopy(node))))


@lru_cache(maxsize=4096)
def references(text: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Return what the text of a definition refers to: global names, dotted chains (name, attribute, ...), and attributes."""
    tables = [symtable.symtable(text, "<identity>", "exec")]
    top, names = tables[0], set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        names |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table is top)}
    tree = ast.parse(text)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    chains = {chain for node in attributes if (chain := _chain(node))}
    return tuple(sorted(names)), tuple(sorted(chains)), tuple(sorted({node.attr for node in attributes}))


@lru_cache(maxsize=4096)
def imports(text: str) -> tuple[tuple[str, str, str | None], ...]:
    """Return (local name, module, attribute) of the imports inside a definition; relative modules begin with dots."""
    found: list[tuple[str, str, str | None]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(alias.asname or alias.name, module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            whole = [(alias.asname, alias.name) for alias in node.names]
            found += [(own or name.split(".")[0], name if own else name.split(".")[0], None) for own, name in whole]
    return tuple(found)


def is_state(name: str, file: str | None, *, inside: bool = False) -> bool:
    """Return whether a global is a container for state, empty at first or set by functions, so that its value now is accidental.

    Args:
        inside: whether the name is a variable of a function instead of a global.
    """
    return name in _states("".join(linecache.getlines(file)), inside) if file else False


def assignments(name: str, file: str | None) -> list[str]:
    """List the statements that assign a value to a global of a module."""
    tree = _parsed("".join(linecache.getlines(file))) if file else None
    return [ast.unparse(statement) for targets, _, statement in _assigned(tree) if name in targets]


def fillings(name: str, file: str | None) -> list[str]:
    """List the statements outside definitions that may fill a global of a module, such as TABLE["a"] = 1 or a loop."""
    tree = _parsed("".join(linecache.getlines(file))) if file else None
    found = [node for node in (tree.body if tree else ()) if not isinstance(node, Definition | ast.AnnAssign)]
    found = [node for node in found if not (isinstance(node, ast.Assign) and _is_empty(node.value))]
    return [
        ast.unparse(node) for node in found if any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))
    ]


@lru_cache(maxsize=256)
def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:  # edited after it was run
        return None


@lru_cache(maxsize=256)
def _index(source: str) -> list[tuple[str, Definition]]:
    """List all definitions with their qualified names."""
    found: list[tuple[str, Definition]] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, Definition):
                found.append((prefix + _name(child), child))
                inner = f"{prefix}{_name(child)}." + ("" if isinstance(child, ast.ClassDef) else "<locals>.")
            visit(child, inner)

    if (tree := _parsed(source)) is not None:
        visit(tree, "")
    return found


@lru_cache(maxsize=256)
def _states(source: str, inside: bool) -> frozenset[str]:
    tree = _parsed(source)
    if tree is None:
        return frozenset()
    rebinds = ast.Nonlocal if inside else ast.Global
    rebound = {name for node in ast.walk(tree) if isinstance(node, rebinds) for name in node.names}
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)] if inside else [tree]
    statements = (found for function in functions for found in _assigned(function))
    empty = {name for names, value, _ in statements if _is_empty(value) for name in names}
    return frozenset(rebound | empty)


def _assigned(tree: ast.Module | ast.FunctionDef | None) -> Iterator[tuple[set[str], ast.expr | None, ast.stmt]]:
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
            yield names, statement.value, statement


def _is_empty(value: ast.expr | None) -> bool:
    match value:
        case ast.Dict(keys=[]) | ast.List(elts=[]):
            return True
        case ast.Call(func=ast.Name(id="dict" | "list" | "set"), args=[], keywords=[]):
            return True
    return False


def _name(node: Definition) -> str:
    return "<lambda>" if isinstance(node, ast.Lambda) else node.name


def _first_line(node: Definition) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _holds(node: Any, place: tuple[int, int]) -> bool:
    return (node.lineno, node.col_offset) <= place <= (node.end_lineno, node.end_col_offset)


def _chain(node: ast.AST) -> tuple[str, ...] | None:
    """Return ("a", "b", "c") for a.b.c; None for any other expression."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)):
        return (*before, node.attr)
    return None


def _registers(decorator: ast.expr) -> bool:
    """Return whether a decorator registers something, as @register_loss(...) does: keys hold what it declares separately."""
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    name = (_chain(called) or ("",))[-1]
    return name == "register" or name.startswith("register_")


class _Plain(ast.NodeTransformer):
    """Removes what does not change what is computed."""

    def generic_visit(self, node: Any) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]
        return node

    def _definition(self, node: Any) -> Any:
        node.decorator_list = [d for d in node.decorator_list if not _registers(d)]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._definition(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # type: ignore[assignment]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign):  # a field of a dataclass: kept as text
                statement.annotation = ast.Constant(ast.unparse(statement.annotation))
                statement.simple = 0
        return self._definition(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if isinstance(node.annotation, ast.Constant):
            return self.generic_visit(node)
        if node.value is None:
            return None
        return self.visit(ast.Assign(targets=[node.target], value=node.value))

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        exception = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=exception, cause=None)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Assert(test=self.visit(node.test), msg=None)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        return ast.Global(names=node.names)  # by itself, the definition has no enclosing function
