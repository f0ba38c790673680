# The order of work when a circuit's variables become known one after another: which units change, and which do not.

"""
Products whose children have the same scopes: `units`, and these `scopes`; `child[i, k]`: the k-th unit's of the i-th scope. All of them have one scale.
"""
struct Partition
    units::Vector{Int32}
    scopes::Vector{Int32}
    child::Matrix{Int32}
end

"""
All units over the same variables. They have one scale: the values of `partitions` and inputs, to which the `sums` (with products of one
child) lead without another. `above`: the partitions of larger scopes that it is part of, as (scope, partition); `boundary`: the units that
are children of those, `outer_start` and `outer` their products there, as (number in the partition, number in `above`).
"""
struct Scope
    variable::Int                       # of a scope of one variable, else 0
    inputs::Vector{Int32}
    sums::Vector{Int32}
    partitions::Vector{Partition}
    above::Vector{Tuple{Int32,Int32}}
    boundary::Vector{Int32}
    outer_start::Vector{Int32}
    outer::Vector{Tuple{Int32,Int32}}
end

"""
One way through a scope, up or, of `-scope`, down. Of what other scopes say only what is known counts: `known` has, for each of the scope's
partitions, or, on the way down, of those above it, the numbers of the others of its scopes in which something is known.
"""
struct Passage
    scope::Int32
    known::Vector{Vector{Int32}}
end

# So many units that take from the same others are worked out at a time.
const ABREAST = 4

"""
Up to `ABREAST` units, from `unit` on in [`Bundles`](@ref)`.units`, each the weighted sum of the same `terms` others, from `from` on. `fresh`: of these
alone, else added to what the units have.
"""
struct Bundle
    unit::Int32
    count::Int32
    from::Int64
    terms::Int32
    weight::Int64
    fresh::Bool
end

"""
Weighted sums of columns of one matrix into columns of another, bundle by bundle; `part[i]`: those of the i-th piece of work. Weights of a bundle of
several units lie together for each term, `ABREAST` of them.
"""
struct Bundles{T}
    list::Vector{Bundle}
    units::Vector{Int32}
    from::Vector{Int32}
    weight::Vector{T}
    part::Vector{UnitRange{Int}}
end

Bundles{T}() where {T} = Bundles{T}(Bundle[], Int32[], Int32[], T[], UnitRange{Int}[])

"Adds a piece of work: for each of `units` the others `from(u)`, their weights `weight(u)`, and whether it is `fresh(u)`."
function add_part!(b::Bundles{T}, units, from, weight, fresh) where {T}
    first, i = length(b.list) + 1, 1
    last, at = 0, 0  # the unit whose list was kept last, and where
    while i <= length(units)
        list, m = from(units[i]), 1
        while m < ABREAST && i + m <= length(units) && fresh(units[i + m]) == fresh(units[i]) && same_list(from(units[i + m]), list)
            m += 1
        end
        if last == 0 || !same_list(list, from(last))
            last, at = units[i], length(b.from) + 1
            append!(b.from, list)
        end
        push!(b.list, Bundle(length(b.units) + 1, m, at, length(list), length(b.weight) + 1, fresh(units[i])))
        append!(b.units, units[i:i + m - 1])
        add_weights!(b.weight, [weight(u) for u in units[i:i + m - 1]])
        pause(10 + m * length(list))
        i += m
    end
    push!(b.part, first:length(b.list))
    return b
end

"Adds the weights of a bundle, of each of its units."
function add_weights!(all::Vector{T}, weights) where {T}
    start, wide = length(all), length(weights) == 1 ? 1 : ABREAST
    resize!(all, start + wide * length(weights[1]))
    fill!(view(all, start + 1:length(all)), 0)
    for (k, own) in enumerate(weights), t in eachindex(own)
        @inbounds all[start + wide * (t - 1) + k] = plain(T, own[t])
    end
end

function same_list(a, b)
    length(a) == length(b) || return false
    for i in eachindex(a)
        @inbounds a[i] == b[i] || return false
    end
    return true
end

"A weight as the codec has it: what is below `tiny(T)`, or no normal number, counts as 0."
@inline plain(::Type{T}, w::Real) where {T} = w < max(tiny(T), floatmin(Float32)) ? zero(T) : T(w)
@inline plain(w::Float32) = plain(Float64, w)

"""
The inputs that look at one variable. The values, as many as the variable with most has, come in groups of neighbours: `value[i, k, g]` is
the probability of the i-th value of group g under the k-th input. What is no value has 0. `exponent[i, g]`: that of the largest of them; `DEAD`
where all are 0. `by_value[k, x]`: the same by values, with zeros up to a multiple of `LANES`, for [`know!`](@ref).
"""
struct InputTable
    value::Array{Float32,3}
    exponent::Matrix{Int32}
    by_value::Matrix{Float32}
end

function InputTable(c::Circuit, inputs, C::Int, group::Int, ::Type{T}) where {T}
    value = zeros(Float32, group, length(inputs), cld(C, group))
    for (k, u) in enumerate(inputs), (x, p) in enumerate(probabilities(c, u))
        g, i = divrem(x - 1, group)
        value[i + 1, k, g + 1] = plain(T, p)
    end
    largest = maximum(value, dims=2)[:, 1, :]
    by_value = zeros(Float32, cld(length(inputs), LANES) * LANES, length(largest))
    for g in axes(value, 3), k in axes(value, 2), i in 1:group
        @inbounds by_value[k, group * (g - 1) + i] = value[i, k, g]
    end
    return InputTable(value, [p == 0 ? DEAD : Int32(double_exponent(Float64(p))) for p in largest], by_value)
end

"Of each group of values its mass under each input: a piece of work from the inputs to the groups."
function add_masses!(b::Bundles, table::InputTable, inputs)
    mass = zeros(size(table.value, 2), size(table.value, 3))
    for g in axes(mass, 2), k in axes(mass, 1), i in axes(table.value, 1)
        @inbounds mass[k, g] += table.value[i, k, g]
    end
    add_part!(b, 1:size(mass, 2), g -> inputs, g -> view(mass, :, g), g -> true)
end

"""
    Layout(circuit)

The scopes of a circuit, that of each unit, the scope of the heads, and of each variable the scope of it alone. Throws an `ArgumentError`
where heads have different variables, or none looks at one.
"""
struct Layout
    scopes::Vector{Scope}
    scope::Vector{Int32}
    root::Int32
    single::Vector{Int32}
end

function Layout(c::Circuit)
    scope, scopes = find_scopes(c)
    root, single = scope[c.heads[1]], zeros(Int32, c.num_vars)
    all(h -> scope[h] == root, c.heads) || throw(ArgumentError("circuit: its heads have different variables, wanted the same"))
    for (s, each) in enumerate(scopes)
        each.variable > 0 && (single[each.variable] = s)
    end
    v = findfirst(iszero, single)
    v === nothing || throw(ArgumentError("circuit: no input looks at variable $(v - 1) alone"))
    return Layout(scopes, scope, root, single)
end

"""
    CodingPlan(circuit, layout, order, group, T; given=0)

How the variables of a circuit are coded in an `order`, and what each makes necessary: `steps[i]` lists the scopes to go through before the
i-th variable, and `last` those on the way up after the last. What is outside of a scope says the
same to all that is inside as long as nothing outside becomes known, and the other way round: in a tree in depth-first order, each edge is
gone through once each way. Scopes of which nothing is known say 1, and nobody asks them. Values come in groups of `group` ([`InputTable`](@ref)). The first `given` variables of the order are known together before
the next one, and then again, with other values, as often as one likes: the others are unknown again then.

Parameters are the circuit's own: linear, and exact in `T`, Float32 or Float64, but for those that [`plain`](@ref) leaves out. `up` has the sums of
each scope, `down` what units are told by their parents of the same scope, `mass` the groups of each variable's values.
"""
struct CodingPlan{T}
    circuit::Circuit
    layout::Layout
    up::Bundles{T}
    down::Bundles{T}
    mass::Bundles{T}
    tables::Vector{InputTable}          # of each variable
    order::Vector{Int}
    steps::Vector{Vector{Passage}}
    last::Vector{Passage}
end

function CodingPlan(c::Circuit, layout::Layout, order::Vector{Int}, group::Int, ::Type{T}; given::Int=0) where {T}
    C, mass = Int(maximum(category_limits(c))), Bundles{T}()
    inputs(v) = layout.scopes[layout.single[v]].inputs
    tables = map(1:c.num_vars) do v
        if v in view(order, 1:given)  # known values are looked up one by one
            push!(mass.part, 1:0)
            return InputTable(c, inputs(v), C, 1, T)
        end
        table = InputTable(c, inputs(v), C, group, T)
        add_masses!(mass, table, inputs(v))
        return table
    end
    return CodingPlan{T}(c, layout, bundles_up(c, layout, T), bundles_down(c, layout, T), mass, tables, order,
                         plan_passages(layout, order, plan_steps(layout, order, given))...)
end

function bundles_up(c::Circuit, layout::Layout, ::Type{T}) where {T}
    b = Bundles{T}()
    for scope in layout.scopes
        add_part!(b, scope.sums, u -> children(c, u), u -> view(c.weight, edges(c, u)), u -> true)
    end
    return b
end

function bundles_down(c::Circuit, layout::Layout, ::Type{T}) where {T}
    start, parent, weight = parents_within(c, layout.scope)
    own(list, u) = view(list, start[u]:start[u + 1] - 1)
    b, told = Bundles{T}(), fill(false, num_units(c))  # whether other scopes tell a unit too
    for scope in layout.scopes
        told[scope.boundary] .= true
    end
    told[c.heads] .= true
    for scope in layout.scopes
        units = reduce(vcat, [part.units for part in scope.partitions]; init=reverse(scope.sums))
        add_part!(b, [units; scope.inputs], u -> own(parent, u), u -> own(weight, u), u -> !told[u])
    end
    return b
end

"A sum of random numbers, one for each variable: scopes are equal if and only if these are, but for one in 2^100."
scope_key(v) = UInt128(mix64(2v % UInt64 + GOLDEN_GAMMA)) << 64 | mix64((2v + 1) % UInt64 ⊻ GOLDEN_GAMMA)

function find_scopes(c::Circuit)
    n = num_units(c)
    keys, scope, ids = Vector{UInt128}(undef, n), zeros(Int32, n), Dict{UInt128,Int32}()
    variable, inputs, sums = Int[], Vector{Int32}[], Vector{Int32}[]
    parts, part_ids = Vector{Tuple{Vector{Int32},Vector{Int32}}}[], Dict{Vector{Int32},Tuple{Int32,Int32}}()
    part_of, place = fill((Int32(0), Int32(0)), n), zeros(Int32, n)  # of a product its partition, and its number there
    for u in 1:n
        own = children(c, u)
        if isinput(c.kind[u])
            keys[u] = scope_key(c.variable[u])
        elseif c.kind[u] == SUM
            keys[u] = keys[own[1]]
        else
            keys[u] = sum(keys[v] for v in own)
        end
        s = get!(ids, keys[u]) do
            push!(variable, 0)
            push!(inputs, Int32[])
            push!(sums, Int32[])
            push!(parts, Tuple{Vector{Int32},Vector{Int32}}[])
            length(variable)
        end
        scope[u] = s
        if isinput(c.kind[u])
            variable[s] = c.variable[u]
            push!(inputs[s], u)
        elseif c.kind[u] == SUM || length(own) == 1
            push!(sums[s], u)
        else
            within = sort(scope[own])
            part_of[u] = get!(part_ids, within) do
                push!(parts[s], (Int32[], scope[own]))
                (Int32(s), Int32(length(parts[s])))
            end
            units, _ = parts[s][part_of[u][2]]
            push!(units, u)
            place[u] = length(units)
        end
        pause(10 + 10 * length(own))
    end
    number = zeros(Int32, length(parts))
    partitions = [[Partition(units, scopes, children_by_scope!(number, c, scope, units, scopes)) for (units, scopes) in own] for own in parts]
    return scope, with_boundaries(c, scope, variable, inputs, sums, partitions, part_of, place)
end

"`Partition.child`; `number` is room to work in, of as many as there are scopes."
function children_by_scope!(number, c, scope, units, scopes)
    number[scopes] = eachindex(scopes)
    child = zeros(Int32, length(scopes), length(units))
    for (k, u) in enumerate(units)
        for v in children(c, u)
            child[number[scope[v]], k] = v
        end
        pause(10 * length(scopes))
    end
    return child
end

"Adds to each scope what is above it."
function with_boundaries(c, scope, variable, inputs, sums, parts, part_of, place)
    n, S = num_units(c), length(parts)
    above = [Tuple{Int32,Int32}[] for _ in 1:S]
    for s in 1:S, (i, part) in enumerate(parts[s]), t in part.scopes
        push!(above[t], (s, i))
    end
    number = [Dict(pair => Int32(i) for (i, pair) in enumerate(pairs)) for pairs in above]
    outer = [Tuple{Int32,Int32}[] for _ in 1:n]
    for p in 1:n
        part_of[p][1] == 0 && continue
        for u in children(c, p)
            push!(outer[u], (place[p], number[scope[u]][part_of[p]]))
        end
        pause(10 * length(edges(c, p)))
    end
    boundary = [Int32[] for _ in 1:S]
    for u in 1:n
        isempty(outer[u]) || push!(boundary[scope[u]], u)
    end
    return map(1:S) do s
        own = outer[boundary[s]]
        Scope(variable[s], inputs[s], sums[s], parts[s], above[s], boundary[s], cumsum(Int32[1; length.(own)]),
              isempty(own) ? Tuple{Int32,Int32}[] : reduce(vcat, own))
    end
end

"For each unit its parents of the same scope, as (start, parents, weights)."
function parents_within(c::Circuit, scope)
    n = num_units(c)
    within(u) = c.kind[u] == SUM || c.kind[u] == PRODUCT && length(edges(c, u)) == 1
    start = zeros(Int64, n + 1)
    for u in 1:n
        within(u) || continue
        for v in children(c, u)
            start[v + 1] += 1
        end
        pause(length(edges(c, u)))
    end
    start[1] = 1
    cumsum!(start, start)
    parent, weight, free = Vector{Int32}(undef, start[end] - 1), Vector{Float32}(undef, start[end] - 1), copy(start)
    for u in 1:n
        within(u) || continue
        for e in edges(c, u)
            v = child(c, u, e)
            parent[free[v]], weight[free[v]] = u, c.weight[e]
            free[v] += 1
        end
        pause(length(edges(c, u)))
    end
    return start, parent, weight
end

"Multiply-adds of going through a scope once, on the way up or down."
work(c::Circuit, s::Scope) = mapreduce(u -> length(edges(c, u)), +, s.sums; init=0) +
                             mapreduce(part -> length(part.units) * length(part.scopes), +, s.partitions; init=0)

"The order, of some that suit one of the circuits over the same variables, in which all take least work; `first`, if above 0, is first."
function best_order(circuits, layouts, first::Int)
    candidates = reduce(vcat, depth_firsts(layout) for layout in layouts[1:min(end, MOST_TRIED)])
    push!(candidates, collect(1:circuits[1].num_vars))
    best, least = candidates[1], Inf
    for order in unique(candidates)
        first > 0 && (order = [first; filter(!=(first), order)])
        cost = sum(zip(circuits, layouts)) do (c, layout)
            per_scope = Float64[work(c, s) for s in layout.scopes]
            steps, last = plan_steps(layout, order)
            sum(s -> per_scope[abs(s)], reduce(vcat, steps; init=last))
        end
        cost < least && ((best, least) = (order, cost))
        pause()
    end
    return best
end

const MOST_TRIED = 8

"Some orders that suit the circuit: depth-first by the first partitions of all scopes, by the second, and so on."
depth_firsts(layout::Layout) =
    [depth_first(layout, k) for k in 1:clamp(maximum(length(s.partitions) for s in layout.scopes), 1, 4)]

"The variables in depth-first order; where a scope has several partitions, the k-th counts. Small children come first."
function depth_first(layout::Layout, k)
    scopes, order, seen, stack = layout.scopes, Int[], Set{Int}(), [Int(layout.root)]
    while !isempty(stack)
        s = pop!(stack)
        scope = scopes[s]
        if scope.variable > 0
            scope.variable in seen || push!(order, scope.variable)
            push!(seen, scope.variable)
        elseif !isempty(scope.partitions)
            own = scope.partitions[mod1(k, length(scope.partitions))].scopes
            append!(stack, sort(own; by=t -> (scopes[t].variable > 0, t)))  # single variables on top
        end
    end
    return order
end

"The scopes to go through before each variable, and after the last, -s on the way down; before the `given` first there are none."
function plan_steps(layout::Layout, order, given=0)
    scopes, root, single, S = layout.scopes, layout.root, layout.single, length(layout.scopes)
    stale, clock = fill(false, S), Ref(0)
    tick() = clock[] += 1
    up_at, down_at, asked_at, through = zeros(Int, S), zeros(Int, S), zeros(Int, S), Int32[]

    function go_up(s)
        stale[s] || return
        for part in scopes[s].partitions, t in part.scopes
            go_up(t)
        end
        push!(through, s)
        stale[s], up_at[s] = false, tick()
        return
    end

    function go_down(s, step)
        asked_at[s] == step && return
        asked_at[s] = step
        if s == root
            down_at[s] == 0 || return
            push!(through, -s)
            down_at[s] = tick()
            return
        end
        newest = 1
        for (parent, i) in scopes[s].above
            go_down(parent, step)
            newest = max(newest, down_at[parent])
            for t in scopes[parent].partitions[i].scopes
                t == s && continue
                go_up(t)
                newest = max(newest, up_at[t])
            end
        end
        newest > down_at[s] || return
        push!(through, -s)
        down_at[s] = tick()
        return
    end

    function known(s)
        stale[s] && return
        stale[s] = true
        for (parent, _) in scopes[s].above
            known(parent)
        end
    end

    steps = map(enumerate(order)) do (step, v)
        empty!(through)
        step > given && go_down(single[v], step)
        known(single[v])
        pause(10 * length(through))
        copy(through)
    end
    empty!(through)
    go_up(root)
    return steps, through
end

"The ways through scopes that `plan_steps` lists, each with what is known by then."
function plan_passages(layout::Layout, order, (steps, last))
    scopes, seen = layout.scopes, fill(false, length(layout.scopes))  # whether something in it is known

    function see(s)
        seen[s] && return
        seen[s] = true
        foreach(((parent, _),) -> see(parent), scopes[s].above)
    end

    known_of(part, but=0) = Int32[i for (i, t) in enumerate(part.scopes) if t != but && seen[t]]
    passage(s) = Passage(s, s > 0 ? map(known_of, scopes[s].partitions) :
                                    [known_of(scopes[parent].partitions[i], -s) for (parent, i) in scopes[-s].above])
    ways = map(order, steps) do v, through
        own = map(passage, through)
        see(layout.single[v])
        pause(10 * length(own))
        own
    end
    return ways, map(passage, last)
end
