# Two circuits beside each other: the Kullback-Leibler divergence of two of one structure, and the inner product of two that decompose alike.

"""
    kl_divergence(p, q, head_p = 1, head_q = 1) -> nats

KL(p || q) of the joint distributions over variables and choices of two circuits of one structure: what the induced tree and the values have under p
and q. With F the flows of p where nothing is known, it is the sum over sum edges of F_e log(w_e / w'_e) and over inputs of F_u KL(p_u || q_u). By the
chain rule it is at least the divergence of the distributions over the variables alone, and equal to it where the choices follow from the values.

Throws an `ArgumentError` that names the first unit in which the circuits differ in more than parameters.
"""
function kl_divergence(p::Circuit, q::Circuit, head_p::Integer=1, head_q::Integer=1)
    check_same_structure(p, q)
    p.heads[head_p] == q.heads[head_q] || throw(ArgumentError("other: head $(head_q - 1) is unit $(q.heads[head_q] - 1), " *
                                                             "wanted $(p.heads[head_p] - 1), which head $(head_p - 1) is here"))
    flow, total = zeros(num_units(p)), 0.0
    flow[p.heads[head_p]] = 1
    for u in reverse(1:num_units(p))
        pause(10 + 30 * length(edges(p, u)) + (flow[u] > 0 ? 30 * Int(p.categories[u]) : 0))
        flow[u] > 0 || continue
        if isinput(p.kind[u])
            total += flow[u] * input_divergence(p, q, u)
            continue
        end
        for e in edges(p, u)
            w = p.kind[u] == PRODUCT ? 1.0 : Float64(p.weight[e])
            w > 0 || continue
            flow[child(p, u, e)] += w * flow[u]
            p.kind[u] == SUM && (total += flow[u] * w * log(w / Float64(q.weight[e])))
        end
    end
    return max(total, 0.0)  # weights sum to 1 but for rounding
end

function check_same_structure(p::Circuit, q::Circuit)
    p.num_vars == q.num_vars || throw(ArgumentError("other: found $(q.num_vars) variables, wanted the circuit's $(p.num_vars)"))
    for u in 1:min(num_units(p), num_units(q))
        same = p.kind[u] == q.kind[u] && p.variable[u] == q.variable[u] && p.categories[u] == q.categories[u] &&
               length(edges(p, u)) == length(edges(q, u)) && all(i -> p.child[p.list[u] + i] == q.child[q.list[u] + i], 0:length(edges(p, u)) - 1)
        same || throw(ArgumentError("other: found another structure: unit $(u - 1) differs, wanted the same units and edges"))
        pause(10 + 2 * length(edges(p, u)))
    end
    num_units(p) == num_units(q) || throw(ArgumentError("other: found $(num_units(q)) units, wanted the circuit's $(num_units(p)), with the same edges"))
end

"KL(p_u || q_u) of the distributions of an input, in nats."
function input_divergence(p::Circuit, q::Circuit, u)
    if p.kind[u] == POISSON
        a, b = entry(p, u, 0), entry(q, u, 0)
        return a * log(a / b) + b - a
    elseif p.kind[u] == GAUSSIAN
        (m, s), (n, t) = (entry(p, u, 0), entry(p, u, 1)), (entry(q, u, 0), entry(q, u, 1))
        return log(t / s) + (s^2 + (m - n)^2) / (2 * t^2) - 0.5
    end
    total = 0.0
    for k in 0:p.categories[u] - 1
        own = log_probability(p, u, k)
        own > -Inf && (total += exp(own) * (own - log_probability(q, u, k)))
    end
    return total
end

# Inner products.

"""
Units of a circuit that are looked at together: a group of its schedule, or, of products, some of their `factors`. Where these are all, it is the
group itself.
"""
struct Side
    group::Int
    factors::Vector{Int}  # which of the group's; empty: the whole group
end

Base.:(==)(a::Side, b::Side) = a.group == b.group && a.factors == b.factors
Base.hash(s::Side, h::UInt) = hash(s.group, hash(s.factors, h))

"A circuit, its schedule, and of each group its scope and, of products, their factors: those that are products themselves are taken apart."
struct Decomposed
    schedule::Schedule
    scopes::Vector{BitSet}
    factors::Vector{Vector{Tuple{Int,Vector{Int32}}}}  # (group, which of its units each product has)
end

function Decomposed(c::Circuit)
    schedule = Schedule(c)
    scopes, factors = BitSet[], Vector{Tuple{Int,Vector{Int32}}}[]
    for g in schedule.groups
        scope, own = BitSet(), Tuple{Int,Vector{Int32}}[]
        if isinput(g.kind)
            push!(scope, g.variable)
        elseif g.kind == SUM
            union!(scope, scopes[g.blocks[1].child])
        else
            for f in g.factors
                index = f.identity ? Int32.(1:width(g)) : f.index
                union!(scope, scopes[f.child])
                if schedule.groups[f.child].kind == PRODUCT
                    append!(own, [(child, of[index]) for (child, of) in factors[f.child]])
                else
                    push!(own, (f.child, index))
                end
                pause(width(g))
            end
        end
        push!(scopes, scope)
        push!(factors, own)
        pause(100 + length(scope))
    end
    return Decomposed(schedule, scopes, factors)
end

kind(d::Decomposed, s::Side) = d.schedule.groups[s.group].kind
width(d::Decomposed, s::Side) = width(d.schedule.groups[s.group])

function scope(d::Decomposed, s::Side)
    isempty(s.factors) && return d.scopes[s.group]
    return foldl(union!, (d.scopes[d.factors[s.group][i][1]] for i in s.factors); init=BitSet())
end

"The factors of a side, which are sums and inputs: of products theirs, of others themselves."
function factors_of(d::Decomposed, s::Side)
    kind(d, s) == PRODUCT || return [(s.group, Int32.(1:width(d, s)))]
    return isempty(s.factors) ? d.factors[s.group] : d.factors[s.group][s.factors]
end

"""
    log_inner_product(p, q, head_p = 1, head_q = 1) -> nats

The logarithm of the integral, or sum, over all x of p(x) q(x), exact for circuits that decompose alike: for products over equal scopes, wherever they
meet, one's factors must be unions of the other's. Each pair of groups of equal scope has a matrix of the logarithms of its units' inner
products (after Vergari et al. 2021): sums are weighted sums of them, products products, and inputs have theirs in closed form.

Throws an `ArgumentError` that names the units where the circuits do not decompose alike, or have other variables or kinds of values.
"""
function log_inner_product(p::Circuit, q::Circuit, head_p::Integer=1, head_q::Integer=1)
    p.num_vars == q.num_vars || throw(ArgumentError("other: found $(q.num_vars) variables, wanted the circuit's $(p.num_vars)"))
    one, other = Decomposed(single(p, head_p)), Decomposed(single(q, head_q))
    top = (Side(one.schedule.head_group[1], Int[]), Side(other.schedule.head_group[1], Int[]))
    scope(one, top[1]) == scope(other, top[2]) || incompatible(one, other, top...)
    known, stack = Dict{Tuple{Side,Side},Matrix{Float64}}(), [top]
    while !isempty(stack)
        pair = stack[end]
        if haskey(known, pair)
            pop!(stack)
            continue
        end
        missing_pairs = filter(needed -> !haskey(known, needed), pairs_below(one, other, pair...))
        if isempty(missing_pairs)
            known[pair] = inner_products(one, other, pair..., known)
            pop!(stack)
        else
            append!(stack, missing_pairs)
        end
        pause(1000)
    end
    return known[top][one.schedule.head_place[1], other.schedule.head_place[1]]
end

single(c::Circuit, head) = num_heads(c) == 1 ? c : with_heads(c, [head])

"The pairs that a pair's inner products are made of."
function pairs_below(one, other, a::Side, b::Side)
    kind(one, a) == SUM && return [(Side(block.child, Int[]), b) for block in one.schedule.groups[a.group].blocks]
    kind(other, b) == SUM && return [(a, Side(block.child, Int[])) for block in other.schedule.groups[b.group].blocks]
    isinput(kind(one, a)) && isinput(kind(other, b)) && return Tuple{Side,Side}[]
    return [(x, y) for (x, _, y, _) in matched(one, other, a, b)]
end

"""
The factors of two products with one scope, matched: for each part of the scope that neither crosses the side of either, with the units that each
product has of it. In a part, one of the two has one factor.
"""
function matched(one, other, a::Side, b::Side)
    own, others = factors_of(one, a), factors_of(other, b)
    found = Tuple{Side,Vector{Int32},Side,Vector{Int32}}[]
    left, right = collect(eachindex(own)), collect(eachindex(others))
    while !isempty(left)
        first_of, second_of, covered = [popfirst!(left)], Int[], BitSet()
        union!(covered, one.scopes[own[first_of[1]][1]])
        grown = true
        while grown
            more = filter(j -> meets(other.scopes[others[j][1]], covered), right)
            foreach(j -> union!(covered, other.scopes[others[j][1]]), more)
            append!(second_of, more)
            setdiff!(right, more)
            again = filter(i -> meets(one.scopes[own[i][1]], covered), left)
            foreach(i -> union!(covered, one.scopes[own[i][1]]), again)
            append!(first_of, again)
            setdiff!(left, again)
            grown = !isempty(again)
        end
        min(length(first_of), length(second_of)) == 1 || incompatible(one, other, a, b)
        push!(found, (side(one, a, own, first_of)..., side(other, b, others, second_of)...))
    end
    return found
end

meets(a::BitSet, b::BitSet) = any(in(b), a)

"Some factors of a side as a side of their own, and the units that the side's units have of it."
function side(d::Decomposed, s::Side, factors, chosen)
    length(chosen) == 1 && return Side(factors[chosen[1]][1], Int[]), factors[chosen[1]][2]
    within = sort(isempty(s.factors) ? chosen : s.factors[chosen])
    all_units = Int32.(1:width(d, s))
    return Side(s.group, length(within) == length(d.factors[s.group]) ? Int[] : within), all_units
end

function incompatible(one, other, a, b)
    units = [first(d.schedule.groups[s.group].units) - 1 for (d, s) in ((one, a), (other, b))]
    scopes = [in_short(scope(d, s)) for (d, s) in ((one, a), (other, b))]
    scopes[1] == scopes[2] || throw(ArgumentError("other: found variables $(scopes[2]) below unit $(units[2]), wanted $(scopes[1]), as below unit $(units[1]) here"))
    throw(ArgumentError("other: found unit $(units[2]), which divides variables $(scopes[2]) otherwise than unit $(units[1]) does here; " *
                        "wanted circuits that decompose alike"))
end

"Variables, from 0."
function in_short(scope::BitSet)
    shown = join((i - 1 for i in Iterators.take(scope, 6)), ", ")
    return length(scope) > 6 ? "$shown, ... ($(length(scope)) of them)" : shown
end

"The logarithms of the inner products of the units of two sides: (units, units)."
function inner_products(one, other, a::Side, b::Side, known)
    kind(one, a) == SUM && return mixed(one, a, block -> known[(Side(block.child, Int[]), b)])
    kind(other, b) == SUM && return permutedims(mixed(other, b, block -> permutedims(known[(a, Side(block.child, Int[]))])))
    isinput(kind(one, a)) && isinput(kind(other, b)) && return input_products(one.schedule, other.schedule, a.group, b.group)
    out = zeros(width(one, a), width(other, b))
    for (x, of_x, y, of_y) in matched(one, other, a, b)
        factor = known[(x, y)]
        for j in axes(out, 2)
            for i in axes(out, 1)
                out[i, j] += factor[of_x[i], of_y[j]]
            end
            pause(size(out, 1))
        end
    end
    return out
end

"The logarithms of the weighted sums, by a group of sums, of what `below` gives of its blocks' children: (children, columns)."
function mixed(d::Decomposed, s::Side, below)
    g, c = d.schedule.groups[s.group], d.schedule.circuit
    parts = [below(block) for block in g.blocks]
    columns = size(parts[1], 2)
    top, out = fill(-Inf, columns), zeros(width(g), columns)
    for part in parts, j in 1:columns
        top[j] = max(top[j], maximum(view(part, :, j)))
    end
    top .= ifelse.(top .> -Inf, top, 0.0)
    for (block, part) in zip(g.blocks, parts)
        scaled = exp.(part .- top')
        each_edge(size(part, 1), block, 1:width(g)) do k, i, e
            w = Float64(c.weight[e])
            w > 0 && (@inbounds @simd for j in 1:columns
                out[k, j] += w * scaled[i, j]
            end)
            pause(columns)
        end
    end
    for j in 1:columns, k in 1:width(g)
        out[k, j] = out[k, j] > LEAST_PART ? top[j] + log(out[k, j]) : log_mixed(g, c, parts, k, j)
    end
    return out
end

"One of them, on a scale of its own."
function log_mixed(g::Group, c::Circuit, parts, k, j)
    terms = Float64[]
    for (block, part) in zip(g.blocks, parts)
        each_edge((_, i, e) -> push!(terms, log(Float64(c.weight[e])) + part[i, j]), size(part, 1), block, k:k)
    end
    top = maximum(terms)
    return top > -Inf ? top + log(sum(exp.(terms .- top))) : -Inf
end

"`f(sum, child, edge)` for the edges of some sums of a group into a block's child group, which has `count` units."
function each_edge(f, count, b::Block, sums)
    for k in sums
        if isdense(b)
            for i in 1:count
                f(k, i, b.first + i - 1 + (k - 1) * b.stride)
            end
        else
            for at in b.of_sums.start[k]:b.of_sums.start[k + 1] - 1
                f(k, Int(b.of_sums.index[at]), b.first + b.of_sums.edge[at])
            end
        end
    end
end

"Of two groups of inputs of one variable."
function input_products(one::Schedule, other::Schedule, a::Int, b::Int)
    p, q, g, h = one.circuit, other.circuit, one.groups[a], other.groups[b]
    has_table(g.kind) == has_table(h.kind) && (has_table(g.kind) || g.kind == h.kind) && g.categories == h.categories ||
        throw(ArgumentError("other: variable $(g.variable - 1): found $(values_in_words(h)), wanted $(values_in_words(g)), as here"))
    out = zeros(width(g), width(h))
    if has_table(g.kind)
        x, y = table_of(p, g), table_of(q, h)
        mul!(out, transpose(x), y)
        out .= log.(out)
        for j in axes(out, 2), i in axes(out, 1)  # in the tails of binomials
            out[i, j] == -Inf && (out[i, j] = log_of_products(p, g.units[i], q, h.units[j]))
        end
    else
        for (j, v) in enumerate(h.units), (i, u) in enumerate(g.units)
            out[i, j] = g.kind == POISSON ? poisson_product(entry(p, u, 0), entry(q, v, 0)) : gaussian_product(p, u, q, v)
            pause(1000)
        end
    end
    return out
end

table_of(c::Circuit, g::Group) = [probability(c, u, k) for k in 0:g.categories - 1, u in g.units]

function log_of_products(p, u, q, v)
    terms = [log_probability(p, u, k) + log_probability(q, v, k) for k in 0:p.categories[u] - 1]
    top = maximum(terms)
    return top > -Inf ? top + log(sum(exp.(terms .- top))) : -Inf
end

values_in_words(g::Group) = g.kind == POISSON ? "counts" : g.kind == GAUSSIAN ? "real numbers" : "$(g.categories) categories"

"log of the integral of two Gaussians: the density of their means' distance, with both variances."
gaussian_product(p, u, q, v) =
    log_gaussian(entry(p, u, 0), entry(q, v, 0), hypot(entry(p, u, 1), entry(q, v, 1)))

"log of the sum over x of two Poissons, e^(-a - b) (a b)^x / x!^2, term by term, both ways from the largest, at about sqrt(a b)."
function poisson_product(a::Float64, b::Float64)
    product, middle = a * b, floor(Int, sqrt(a * b))
    total = term = 1.0
    x = middle
    while term > 1e-18 * total
        x += 1
        term *= product / Float64(x)^2
        total += term
    end
    x, term = middle, 1.0
    while x > 0 && term > 1e-18 * total
        term *= Float64(x)^2 / product
        total += term
        x -= 1
    end
    return log_poisson(middle, a) + log_poisson(middle, b) + log(total)
end
